import threading
import time

import pytest

from vqa_utils.sharing.seats import Seats

PATIENCE = 60  # seconds until a wait in vain fails


@pytest.fixture
def seats():
    """Makes seats that are open."""

    def make(count):
        seats = Seats(count)
        seats.open()
        return seats

    return make


class Waiting(threading.Thread):
    """Takes a seat; it is in the queue once this is made."""

    def __init__(self, seats, step):
        super().__init__(daemon=True)
        self.seats, self.step = seats, step
        self.start()
        deadline = time.monotonic() + PATIENCE
        while step not in seats._queue:
            assert time.monotonic() < deadline

    def run(self):
        self.seats.take(self.step)

    def has_ended(self, patience=PATIENCE):
        self.join(patience)
        return not self.is_alive()


def test_as_many_as_there_are_seats_are_at_work_in_the_order_of_asking(seats):
    two = seats(2)
    two.take("a")
    two.take("b")
    third, fourth = Waiting(two, "c"), Waiting(two, "d")
    two.leave("a")
    assert third.has_ended() and fourth.is_alive()
    two.leave("unknown")
    two.leave("b")
    assert fourth.has_ended()


def test_nobody_is_seated_before_it_is_known_whether_there_is_a_base():
    """Without one, each needs room for its own: one at a time."""
    two = Seats(2)
    first, second = Waiting(two, "a"), Waiting(two, "b")
    assert not first.has_ended(0.1)
    two.limit(1)
    two.open()
    assert first.has_ended() and not second.has_ended(0.1)
    two.leave("a")
    assert second.has_ended()


def test_nobody_waits_any_more_when_the_run_stops(seats):
    one = seats(1)
    one.take("a")
    second = Waiting(one, "b")
    one.close()
    assert second.has_ended()
    one.take("c")


def test_a_fold_that_ran_out_beside_one_that_has_left_keeps_its_settings(seats):
    two = seats(2)
    two.take("a")
    two.take("b")
    assert two.shrink("a") and two.count == 1
    assert two.shrink("b") and two.count == 1, "the other has gone since: the same again, alone"
    two.leave("a")
    two.leave("b")
    two.take("c")
    assert not two.shrink("c") and two.count == 1, "now the ladder"


def test_one_that_waited_while_they_became_fewer_was_alone(seats):
    two = seats(2)
    two.take("a")
    two.take("b")
    third = Waiting(two, "c")
    two.shrink("a")
    two.leave("a")
    assert not third.has_ended(0.1), "one fewer, and b is at work"
    two.leave("b")
    assert third.has_ended() and not two.shrink("c")


def test_after_it_has_shrunk_those_at_work_stay_and_the_next_waits_longer(seats):
    three = seats(3)
    for step in "abc":
        three.take(step)
    three.shrink("a")
    fourth = Waiting(three, "d")
    three.leave("a")
    assert not fourth.has_ended(0.1)
    three.leave("b")
    assert fourth.has_ended()
