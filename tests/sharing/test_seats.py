import threading

from vqa_utils.sharing.seats import Seats

PATIENCE = 60  # seconds until a wait in vain fails


def waiting(seats, holder):
    """Start a thread that asks for a seat; its event is set once it has one."""
    has_seat = threading.Event()

    def take():
        seats.take(holder)
        has_seat.set()

    threading.Thread(target=take, daemon=True).start()
    while holder not in seats._queue:
        pass
    return has_seat


def test_as_many_as_there_are_seats_are_at_work_in_the_order_of_asking():
    seats = Seats(2)
    seats.take("a")
    seats.take("b")
    seats.take("b")  # has one already
    third = waiting(seats, "c")
    fourth = waiting(seats, "d")
    assert not third.is_set()
    seats.leave("a")
    assert third.wait(PATIENCE) and not fourth.is_set()
    seats.leave("unknown")
    seats.leave("b")
    assert fourth.wait(PATIENCE)


def test_one_that_gives_up_waiting_is_in_nobodys_way():
    seats = Seats(1)
    seats.take("a")
    second = waiting(seats, "b")
    third = waiting(seats, "c")
    seats.leave("b")
    assert second.wait(PATIENCE), "whoever waited for it goes on, to nobody"
    assert not third.is_set()
    seats.leave("a")
    assert third.wait(PATIENCE)


def test_a_fold_that_ran_out_beside_one_that_has_left_keeps_its_settings():
    seats = Seats(2)
    assert seats.shrink(2) and seats.count == 1
    assert seats.shrink(2) and seats.count == 1, "the other has gone since: the same again, alone"
    assert not seats.shrink(1) and seats.count == 1, "now the ladder"


def test_after_it_has_shrunk_those_at_work_stay_and_the_next_waits_longer():
    seats = Seats(3)
    for holder in "abc":
        seats.take(holder)
    seats.shrink(3)
    fourth = waiting(seats, "d")
    seats.leave("a")
    seats.take("b")
    seats.take("c")
    assert not fourth.is_set()
    seats.leave("b")
    assert fourth.wait(PATIENCE)
