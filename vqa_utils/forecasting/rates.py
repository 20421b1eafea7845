"""How fast a GPU and its host work, for the model of the cost. Free of torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from vqa_utils.forecasting._work import Work
from vqa_utils.planning.expert_chunks import WORTH_ON_TURING, WORTH_SINCE_AMPERE

SUSTAINED = 0.9  # fitted: what this code's kernels reach of the best rates, those of a large product and a large copy


@dataclass(frozen=True)
class Rates:
    """A GPU's best rates, and its host's."""

    products: float
    """Operations a second of a large fp16 product."""
    memory: float
    """Bytes a second of a large copy, reads and writes counted."""
    bus: float
    """Bytes a second from pinned host memory."""
    kernel: float
    """Seconds that the smallest kernel keeps the GPU."""
    launch: float
    """Seconds that the host takes for a kernel, Python included."""
    padding_worth: int


@dataclass(frozen=True)
class Seconds:
    """Where the time of a pass goes; the GPUs work one after the other, their host and the bus beside them."""

    products: float
    memory: float
    bus: float
    host: float

    @property
    def busy(self) -> float:
        """GPUs at work."""
        return self.products + self.memory

    @property
    def wall(self) -> float:
        return max(self.busy, self.bus, self.host)

    @property
    def bound(self) -> str:
        """What it would take less of: "products", "bytes", "the bus" or "launches"."""
        gpu = "products" if self.products > self.memory else "bytes"
        return max((self.busy, gpu), (self.bus, "the bus"), (self.host, "launches"))[1]


# Kernels: the smallest ones of a profile on an H100 took 1 to 5 us; for a T4, what `chunks` takes for its launches.
# Launches: the median of eight runs on an H100 in tests/bench/README.md, wall time over kernels (41 to 87 us), as the host was
# what they waited for; a host of Kaggle's, with four slow cores, is taken for half as fast.
RATES = {
    # Both rates as tests/bench/speed.py measured them (later runs, in speed.json beside it, had 711 to 764 and 2.7 to 2.9). The
    # bus is PCIe 5.0 x16, 64 GB/s each way by its standard, at the T4's share of it.
    "H100": Rates(717e12, 2.8e12, 48e9, 2e-6, 60e-6, WORTH_SINCE_AMPERE),
    # Products: 24 TFLOP/s in a 4096 x 4096 product that is repeated, as 70 W lower its clocks (NVIDIA's forum, "About GPU peak
    # performance", 264462); 65 is the datasheet's peak. Memory: 220 GB/s of the datasheet's 320, Jia et al., "Dissecting the
    # NVidia Turing T4 GPU via Microbenchmarking", arXiv:1903.07486. The bus is PCIe 3.0 x16: 12 GB/s of 16.
    "T4": Rates(24e12, 220e9, 12e9, 5e-6, 120e-6, WORTH_ON_TURING),
}


def rates_of(name: str) -> Rates | None:
    """A GPU's rates by its name, such as "Tesla T4"; None where none are known."""
    return next((rates for known, rates in RATES.items() if known in name.split()), None)


def seconds_of(works: Sequence[Work], rates: Sequence[Rates]) -> Seconds:
    """The time of a pass through GPUs, each with its work."""
    pairs = list(zip(works, rates, strict=True))
    return Seconds(
        products=sum(work.operations / each.products for work, each in pairs) / SUSTAINED,
        memory=sum(
            work.moved / each.memory / SUSTAINED + work.launches * each.kernel
            for work, each in pairs
        ),
        bus=sum(work.streamed / each.bus for work, each in pairs),
        host=sum(work.launches * each.launch for work, each in pairs),
    )
