"""Values of transformers and qwen-vl-utils, recorded by the scripts in this folder."""
