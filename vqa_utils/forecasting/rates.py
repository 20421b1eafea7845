"""State how fast a GPU and its host are, and how long they take for counted work."""

from collections.abc import Sequence
from dataclasses import dataclass

from vqa_utils.forecasting._work import Work
from vqa_utils.planning.expert_chunks import WORTH_ON_TURING, WORTH_SINCE_AMPERE

# Share of the best rates (a large product's, a large copy's) that this code's kernels reach.
# Fitted on the busy time of an earlier run: tests/bench/README.md.
SUSTAINED = 0.9
# Share of its time in which the busiest GPU of folds that take turns is somebody's: handing over
# takes the rest. Measured at 64 rows per pass: 0.91 with two folds, 0.96 with three
TURNS_KEPT = 0.9


@dataclass(frozen=True)
class Rates:
    """A GPU's best rates, and its host's."""

    products: float
    """Operations per second of a large fp16 product."""
    memory: float
    """Bytes per second of a large copy, reads and writes counted."""
    bus: float
    """Bytes per second from pinned host memory."""
    kernel: float
    """Seconds of the smallest kernel on the GPU."""
    launch: float
    """Seconds of the host for a kernel, Python included."""
    padding_worth: int
    """Padding slots worth the time of one more chunk; see `expert_chunks`."""


@dataclass(frozen=True)
class Seconds:
    """The time of a pass by its parts. GPUs take turns; the host and the bus work beside them."""

    products: float
    memory: float
    bus: float
    host: float
    turns: tuple[float, ...] = ()
    """By the clock, on each GPU."""

    @property
    def busy(self) -> float:
        """Seconds with one of the GPUs at work."""
        return self.products + self.memory

    @property
    def wall(self) -> float:
        """Seconds by the clock."""
        return max(self.busy, self.bus, self.host)

    @property
    def bound(self) -> str:
        """The slowest part: "products", "bytes", "the bus" or "launches"."""
        if self.wall == self.busy:
            return "products" if self.products > self.memory else "bytes"
        return "the bus" if self.wall == self.bus else "launches"

    def gain(self, folds: int) -> float:
        """Compute how much more is done in the same time by several folds than by one.

        On several GPUs they take turns: in a cycle, each fold has each GPU once. On one GPU they
        only fill the gaps in which it waits for a host.
        """
        if folds == 1:
            return 1.0
        if len(self.turns) == 1:
            cycle = max(folds * self.busy, self.wall)
            return folds * self.wall / cycle
        cycle = max(folds * max(self.turns) / TURNS_KEPT, self.wall)
        return folds * self.wall / cycle


# Kernels: the smallest of a profile on an H100 took 1 to 5 us. For a T4, the 5 us of a launch in
# `expert_chunks`.
# Launches: the median of eight runs on an H100 in tests/bench/README.md, wall time over kernels
# (41 to 87 us), as they waited for the host. Kaggle's hosts, with four slow cores, are taken for
# half as fast.
RATES = {
    "H100": Rates(
        # As tests/bench/speed.py measured; later runs, in speed.json, had 711 to 764 TFLOP/s
        products=717e12,
        # And 2.7 to 2.9 TB/s
        memory=2.8e12,
        # PCIe 5.0 x16: 64 GB/s each way by its standard, at the T4's share of it
        bus=48e9,
        kernel=2e-6,
        launch=60e-6,
        padding_worth=WORTH_SINCE_AMPERE,
    ),
    "T4": Rates(
        # A 4096 x 4096 product that is repeated, as 70 W lower the clocks (NVIDIA's forum, "About
        # GPU peak performance", 264462); the datasheet's peak is 65 TFLOP/s
        products=24e12,
        # Of the datasheet's 320 GB/s: Jia et al., "Dissecting the NVidia Turing T4 GPU via
        # Microbenchmarking", arXiv:1903.07486
        memory=220e9,
        # PCIe 3.0 x16: 12 of its 16 GB/s
        bus=12e9,
        kernel=5e-6,
        launch=120e-6,
        padding_worth=WORTH_ON_TURING,
    ),
}


def rates_of(name: str) -> Rates | None:
    """Find a GPU's rates by its name, such as "Tesla T4"; None if they are not known."""
    words = name.split()
    return next((rates for known, rates in RATES.items() if known in words), None)


def seconds_of(works: Sequence[Work], rates: Sequence[Rates]) -> Seconds:
    """Compute the time of a pass through GPUs, each with its work."""
    products = 0.0
    memory = 0.0
    bus = 0.0
    host = 0.0
    turns = []
    for work, gpu in zip(works, rates, strict=True):
        if len(works) > 1:
            turns.append(seconds_of([work], [gpu]).wall)
        products += work.operations / (SUSTAINED * gpu.products)
        memory += work.moved / (SUSTAINED * gpu.memory) + work.launches * gpu.kernel
        bus += work.copied / gpu.bus
        host += work.launches * gpu.launch
    if len(works) == 1:
        turns = [Seconds(products, memory, bus, host).wall]
    return Seconds(products, memory, bus, host, tuple(turns))
