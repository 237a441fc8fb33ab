"""Quantized vectors have the values of Sentence Transformers.

The literals were recorded from `quantize_embeddings` of sentence-transformers 6.2.0.
"""

import warnings

import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.retrieval.quantization import PRECISIONS, quantize_embeddings
from tests.situations import situation

VECTORS = np.array(
    [
        [0.5, -0.25, 0.0, 0.125, -1.0, 0.75, 0.3, -0.3, 0.1],
        [-0.5, 0.25, 0.0, 0.0625, 1.0, 0.7, -0.3, 0.3, 0.1],
        [0.1, 0.2, -0.3, 0.4, -0.5, 0.6, -0.7, 0.8, -0.9],
    ],
    np.float32,
)
RANGES = np.array([[-1.0] * 9, [1.0] * 9])
CALIBRATION = np.array([[-0.4] * 9, [0.6] * 9])

OWN_RANGES = [  # uint8; int8 is less by 128, here and below
    [254, 0, 255, 47, 0, 255, 254, 0, 254],
    [0, 254, 255, 0, 254, 169, 101, 139, 254],
    [153, 229, 0, 255, 63, 0, 0, 255, 0],
]
GIVEN_RANGES = [
    [191, 95, 127, 143, 0, 223, 165, 89, 140],
    [63, 159, 127, 135, 254, 216, 89, 165, 140],
    [140, 153, 89, 178, 63, 203, 38, 229, 12],
]
CALIBRATED = [
    [229, 38, 101, 133, 0, 255, 178, 25, 127],
    [0, 165, 101, 117, 255, 255, 25, 178, 127],
    [127, 153, 25, 203, 0, 254, 0, 255, 0],
]
BITS = [[150, 128], [93, 128], [213, 0]]  # ubinary; binary is less by 128


@situation(
    "Python API",
    "precision int8, uint8, binary or ubinary, as in Sentence Transformers",
    "the very bytes of its quantize_embeddings, ranges and calibration included",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "options, levels",
    [
        ({}, OWN_RANGES),
        ({"ranges": RANGES}, GIVEN_RANGES),
        ({"calibration_embeddings": CALIBRATION}, CALIBRATED),
        ({"ranges": RANGES, "calibration_embeddings": CALIBRATION}, GIVEN_RANGES),
    ],
)
@pytest.mark.filterwarnings("ignore:the u?int8 ranges come from 3 vectors")
def test_levels(options, levels):
    for precision, less in (("uint8", 0), ("int8", 128)):
        found = quantize_embeddings(VECTORS, precision, **options)
        assert found.dtype == precision and found.tolist() == (np.array(levels) - less).tolist()


def test_signs():
    found = quantize_embeddings(VECTORS, "ubinary")
    assert found.dtype == np.uint8 and found.tolist() == BITS
    found = quantize_embeddings(VECTORS, "binary")
    assert found.dtype == np.int8 and found.tolist() == [[22, 0], [-35, 0], [85, -128]]


def test_float32_is_kept():
    found = quantize_embeddings(VECTORS.astype(np.float64), "float32")
    assert found.dtype == np.float32 and np.array_equal(found, VECTORS)


def test_a_single_vector_stays_one():
    found = quantize_embeddings(VECTORS[0], "int8", ranges=RANGES)
    assert found.tolist() == [63, -33, -1, 15, -128, 95, 37, -39, 12]
    assert quantize_embeddings(VECTORS[0], "binary").tolist() == [22, 0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_vectors(precision):
    width = 2 if precision.endswith("binary") else 9
    assert quantize_embeddings(VECTORS[:0], precision).shape == (0, width)


def test_a_dimension_without_a_range():
    vectors = np.ones((200, 2), np.float32)
    assert quantize_embeddings(vectors, "uint8").max() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no division by zero, no word of too few vectors
        quantize_embeddings(vectors, "int8")


@situation(
    "Python API",
    "int8 of a single vector, which has no range of its own",
    "refused; ranges or calibration_embeddings are named",
    since="0.2.0",
)
def test_a_single_vector_gives_no_ranges():
    for one in (VECTORS[0], VECTORS[:1]):
        with pytest.raises(UserError, match="one alone has none: give ranges or calibration_emb"):
            quantize_embeddings(one, "int8")
    with pytest.warns(UserWarning, match="int8 ranges come from 3 vectors") as seen:
        quantize_embeddings(VECTORS, "int8")
    assert seen[0].filename == __file__


@pytest.mark.parametrize(
    "vectors, options, named",
    [
        (VECTORS, {"precision": "int4"}, "not 'int4'"),
        (VECTORS, {"ranges": RANGES[:, :8]}, r"must be \[2, 9\], not \[2, 8\]"),
        (VECTORS, {"ranges": np.full((2, 9), np.nan)}, "ranges: vector 0 contains NaN"),
        (VECTORS, {"ranges": RANGES[::-1]}, "the least, then the greatest"),
        (VECTORS, {"calibration_embeddings": CALIBRATION[:, :8]}, r"\[N, 9\], not \[2, 8\]"),
        (VECTORS, {"calibration_embeddings": CALIBRATION[:0]}, r"\[N, 9\], not \[0, 9\]"),
        (VECTORS.astype(np.int8), {}, "floating point, not int8"),
        (np.where(np.eye(3, 9), np.nan, VECTORS), {}, "embeddings: vector 0 contains NaN"),
    ],
)
def test_invalid_vectors_or_options_are_refused(vectors, options, named):
    with pytest.raises(UserError, match=named):
        quantize_embeddings(vectors, **({"precision": "int8"} | options))
