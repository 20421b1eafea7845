import pytest

from vqa_utils.plan import Gpu, PlanError, check_machine, needed_gib, usable_gib, weights_gib
from vqa_utils.presets import PRESETS, preset

T4 = Gpu("Tesla T4", 14.74)


def test_the_30b_is_as_large_as_measured():
    assert weights_gib(preset("safe")) == pytest.approx(16.58, rel=0.01)  # measured: 8.49 + 8.09 GiB
    assert weights_gib(preset("safe", quantization="none")) == pytest.approx(31.07e9 * 2 / 2**30, rel=0.01)


@pytest.mark.parametrize("name", ["safe", "balanced", "low_memory"])
def test_two_t4_hold_the_30b_and_one_does_not(name):
    check_machine(preset(name), [T4, T4])
    with pytest.raises(PlanError, match=r"Tesla T4 with 14\.7 GiB; presets that work here: single_gpu, dense_8b, demo"):
        check_machine(preset(name), [T4])


def test_without_a_gpu_only_the_demo_works():
    check_machine(preset("demo"), [])
    for name in PRESETS:
        if name != "demo":
            with pytest.raises(PlanError, match=r"found no GPU; presets that work here: demo \(--preset demo\)"):
                check_machine(preset(name), [])


def test_limits_count_and_a_large_card_needs_its_limit_raised():
    h100 = Gpu("H100", 79.6)
    assert usable_gib(preset("safe"), [h100]) == pytest.approx(14e9 / 2**30)
    with pytest.raises(PlanError, match="within max_memory=14GB,14GB"):
        check_machine(preset("safe"), [h100])
    check_machine(preset("safe", max_memory=("40GB",)), [h100])


def test_an_unknown_model_is_left_to_the_loader():
    assert needed_gib(preset("safe", model="someone/else")) is None
    check_machine(preset("safe", model="someone/else"), [T4])
