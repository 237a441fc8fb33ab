"""Helpers of the GPU benchmark; its measurements need a GPU."""

import numpy as np
import pytest

from evals.speed import gpu, harness, kernels
from evals.speed.items import draw_items
from gve_jax.errors import UserError


def test_refuses_to_run_without_a_gpu():
    with pytest.raises(UserError, match="needs a GPU"):
        harness.run("gpu", [])


def test_overlapping_kernels_count_once():
    assert kernels.covered([(5, 7), (0, 2), (1, 3), (1, 2)]) == 5


@pytest.mark.parametrize(
    "name, kind",
    [
        # Names from a trace of an H200.
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention of cuDNN"),
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT", "matrix products"),
        ("gemm_fusion_dot_general_18", "matrix products"),
        ("loop_multiply_fusion_1", "fusions"),
        ("memcpy128", "copies"),
        ("something_else", "others"),
    ],
)
def test_kernels_are_classified_by_name(name, kind):
    assert kernels.kind_of(name) == kind


def test_items_are_half_texts_a_quarter_images_a_quarter_videos():
    items = draw_items(16, lambda _: (56, 84), lambda _: (56, 84))
    assert sum(item.image is None and item.video is None for item in items) == 8
    assert [i.image.shape for i in items if i.image is not None] == [(56, 84, 3)] * 4
    assert [i.video.shape for i in items if i.video is not None] == [(8, 56, 84, 3)] * 4


def test_distances_and_cosines():
    a, b = np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]])
    assert gpu.distance(a, b) == pytest.approx(2**0.5 / 5)
    assert gpu.cosines(a, b) == pytest.approx([0.96])
