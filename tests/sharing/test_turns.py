"""Each GPU is one fold's at a time, first come, first served."""

import threading

import pytest

from vqa_utils.sharing.turns import Turns


@pytest.fixture
def turns():
    stalls = []
    made = Turns(lambda *stall: stalls.append(stall), stall_seconds=0.02)
    made.stalls = stalls
    return made


def waiting(turns, gpu, holder, log):
    """Start a thread that takes a GPU; returns once it stands in the queue."""

    def go():
        turns.take(gpu, holder)
        log.append(holder)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    while holder not in turns._queues[gpu]:
        pass
    return thread


def test_the_first_to_ask_is_the_next_to_hold(turns):
    turns.take(0, "a")
    log = []
    threads = [waiting(turns, 0, holder, log) for holder in "bcd"]
    assert log == []
    for number, holder in enumerate("abc"):
        turns.give(0, holder)
        threads[number].join(5)
    assert log == list("bcd")


def test_who_gives_and_takes_again_stands_behind_those_who_wait(turns):
    turns.take(0, "a")
    log = []
    thread = waiting(turns, 0, "b", log)
    turns.give(0, "a")
    again = waiting(turns, 0, "a", log)
    thread.join(5)
    assert log == ["b"]
    turns.give(0, "b")
    again.join(5)
    assert log == ["b", "a"]


def test_gpus_have_queues_of_their_own(turns):
    turns.take(0, "a")
    turns.take(1, "b")
    turns.give(0, "a")
    turns.take(0, "b")
    assert [list(turns._queues[gpu]) for gpu in (0, 1)] == [["b"], ["b"]]


def test_who_has_ended_holds_nothing_and_waits_for_nothing(turns):
    turns.take(0, "a")
    log = []
    waiting(turns, 0, "b", log)
    thread = waiting(turns, 0, "c", log)
    turns.leave("b")
    turns.leave("a")
    thread.join(5)
    assert log[-1] == "c"


def test_a_long_wait_names_who_holds_the_gpu(turns):
    turns.take(1, "hangs")
    thread = waiting(turns, 1, "waits", [])
    while not turns.stalls:
        pass
    turns.give(1, "hangs")
    thread.join(5)
    gpu, holder, waits, seconds = turns.stalls[0]
    assert (gpu, holder, waits) == (1, "hangs", "waits") and seconds >= 0.02
