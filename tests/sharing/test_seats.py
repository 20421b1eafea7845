import threading
import time

import pytest

from vqa_utils.sharing.seats import Seats

PATIENCE = 60  # seconds until a wait in vain fails


@pytest.fixture
def seats():
    """Makes seats, with steps a to e open."""

    def make(count, steps="abcde"):
        seats = Seats(count)
        for step in steps:
            seats.open(step, lambda: None)
        return seats

    return make


class Asking(threading.Thread):
    """Asks for a seat; `answer` is there once it has one, or is refused."""

    def __init__(self, seats, step):
        super().__init__(daemon=True)
        self.seats, self.step, self.answer = seats, step, None
        self.start()
        deadline = time.monotonic() + PATIENCE
        while step not in seats._queue:
            assert time.monotonic() < deadline

    def run(self):
        self.answer = self.seats.take(self.step)

    def result(self):
        self.join(PATIENCE)
        return self.answer


def test_as_many_as_there_are_seats_are_at_work_in_the_order_of_asking(seats):
    two = seats(2)
    assert two.take("a") and two.take("b")
    assert two.take("b"), "it has one already"
    third, fourth = Asking(two, "c"), Asking(two, "d")
    two.leave("a")
    assert third.result() and fourth.answer is None
    two.leave("unknown")
    two.leave("b")
    assert fourth.result()


def test_one_that_ends_while_it_waits_is_in_nobodys_way(seats):
    one = seats(1)
    one.take("a")
    second, third = Asking(one, "b"), Asking(one, "c")
    one.leave("b")
    assert second.result() is False and third.answer is None
    one.leave("a")
    assert third.result()


def test_a_message_of_a_step_that_has_ended_takes_no_seat(seats):
    """A kernel was killed just after it had asked."""
    one = seats(1)
    one.leave("a")
    assert one.take("a") is False
    assert one.take("b")


def test_a_step_is_prepared_as_it_is_seated(seats):
    one = seats(1)
    log = []
    for step in "ab":
        one.open(step, lambda step=step: log.append(f"prepare {step}"))
    one.take("a")
    second = Asking(one, "b")
    log.append("a has learned something")
    one.leave("a")
    assert second.result()
    assert log == ["prepare a", "a has learned something", "prepare b"]


def test_a_run_that_stops_refuses_those_who_wait(seats):
    one = seats(1)
    one.take("a")
    second = Asking(one, "b")
    one.close()
    assert second.result() is False and one.take("c") is False
    assert one.take("a"), "the one at work stays"


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
    third = Asking(two, "c")
    two.shrink("a")
    two.leave("a")
    assert third.answer is None, "one fewer, and b is at work"
    two.leave("b")
    assert third.result() and not two.shrink("c")


def test_after_it_has_shrunk_those_at_work_stay_and_the_next_waits_longer(seats):
    three = seats(3)
    for step in "abc":
        three.take(step)
    three.shrink("a")
    fourth = Asking(three, "d")
    three.leave("a")
    assert three.take("b") and three.take("c") and fourth.answer is None
    three.leave("b")
    assert fourth.result()
