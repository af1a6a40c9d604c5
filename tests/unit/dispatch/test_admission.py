from serve_app.dispatch.admission import Admission


def test_units_are_admitted_up_to_the_limit() -> None:
    admission = Admission(limit=10)

    admission.add(8)
    assert admission.has_room(2)
    assert not admission.has_room(3)
    admission.remove(1)
    assert admission.has_room(3)
    assert admission.units == 7


def test_an_empty_queue_admits_any_amount() -> None:
    assert Admission(limit=10).has_room(11)


def test_ingress_replicas_share_a_limit_equally() -> None:
    admission = Admission(limit=90)
    admission.add(20)

    admission.sharers = 3
    assert admission.has_room(10)
    assert not admission.has_room(11)


def test_bulk_is_refused_first_and_takes_no_room() -> None:
    admission = Admission(limit=100)
    admission.add(60)

    assert admission.has_room(15, is_bulk=True)
    assert not admission.has_room(16, is_bulk=True)
    admission.add(15, is_bulk=True)
    assert not admission.has_room(1, is_bulk=True)
    assert admission.has_room(40)
    assert not admission.has_room(41)


def test_a_bulk_request_above_the_limit_is_admitted_at_low_load() -> None:
    """Otherwise steady small traffic would keep it out forever."""
    admission = Admission(limit=100)
    admission.add(50)

    assert admission.has_room(300, is_bulk=True)
    admission.add(300, is_bulk=True)
    assert admission.has_room(50)
    assert not admission.has_room(1, is_bulk=True)
    admission.remove(300, is_bulk=True)
    assert admission.has_room(300, is_bulk=True)

    admission.add(1)
    assert not admission.has_room(300, is_bulk=True)


def test_without_a_limit_everything_is_admitted() -> None:
    admission = Admission(limit=None)
    admission.add(10**9)

    assert admission.has_room(10**9)
