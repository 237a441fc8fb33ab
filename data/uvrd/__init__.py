"""V-SynFlow (arXiv 2510.27571, section 3.2): training pairs from captioned raw videos.

    python -m data.uvrd --config configs/uvrd.py --input captions.jsonl --output DIR \
        --server http://127.0.0.1:8000/v1 --model NAME --embedder GVE

source.py reads the input, text.py cleans and filters captions, pictures.py decodes and cuts videos,
similarity.py compares texts and videos, client.py asks a vision-language model with the prompts of
prompts/, compose.py composes the pairs of one video, part.py runs all stages on a part of the
videos, run.py on all parts (beam.py with Apache Beam) and writes the directory, page.py and card.py
describe the result. world.py renders raw videos of the generated world, and responder.py is a
server that answers for them in place of a model. See docs/uvrd.md.
"""
