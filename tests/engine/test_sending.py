# SPDX-License-Identifier: Apache-2.0
"""What goes out when: nothing is lost or doubled however it is paced, and what is urgent does not wait."""

from hypothesis import given
from hypothesis import strategies as st

from open_autoglm.engine.orders import Piece
from open_autoglm.engine.piece_merging import merge_pieces
from open_autoglm.engine.prepared_order import PieceBuffer, PreparedOrder
from open_autoglm.engine.request import Completion, Delta, Request, TokenLogprob
from open_autoglm.engine.sending import OpenAnswer, Pacer, pace_seconds

NAMES = ("a", "b")
PREPARED = PreparedOrder([Request(name, (1,)) for name in NAMES], {"a": 0, "b": 1}, None)


def delta(name: str, text: str, *, last: bool = False) -> Delta:
    completion = Completion(text, (3,), "stop", 1) if last else None
    return Delta(name, text, (3,), (TokenLogprob(3, -0.5),), completion)


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.text(max_size=3)), max_size=12), st.data())
def test_a_buffer_says_what_its_deltas_say(said: list[tuple[str, str]], data: st.DataObject) -> None:
    deltas = [delta(name, text) for name, text in said] + [delta(name, "", last=True) for name in NAMES]
    buffer, pieces = PieceBuffer(PREPARED), list[Piece]()
    for item in deltas:
        buffer.add(item)
        if data.draw(st.booleans()):
            some = buffer.take()
            assert len({piece.choice for piece in some}) == len(some)
            assert not buffer.num_deltas
            pieces += some
    pieces += buffer.take()
    each = [piece for item in deltas for piece in PREPARED.pieces(item)]
    assert sorted(merge_pieces(pieces), key=lambda item: item.choice) == sorted(
        merge_pieces(each), key=lambda item: item.choice
    )


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def started(number: int, *, whole: bool = False) -> OpenAnswer:
    answer = OpenAnswer(number, whole=whole)
    answer.begin(PreparedOrder([Request(str(number), (1,))], {str(number): 0}, None))
    return answer


def test_the_first_and_the_last_go_at_once_and_the_rest_together() -> None:
    clock = Clock()
    pacer = Pacer(clock)
    answers = [started(number) for number in range(40)]
    sent: dict[int, list[str]] = {number: [] for number in range(40)}
    messages = 0

    def step(*, last: bool = False, some: list[OpenAnswer] = answers) -> list[int]:
        nonlocal messages
        for answer in some:
            answer.add(delta(str(answer.number), "x", last=last))
        chosen = pacer.choose(some, len(answers))
        messages += len(chosen)
        for answer in chosen:
            part = answer.part()
            assert part.is_last == last
            sent[part.number] += [piece.text for piece in part.pieces]
        return [answer.number for answer in chosen]

    assert len(step()) == 40
    for _ in range(100):
        clock.now += 0.004
        step()
    assert messages < 40 + 40 * (0.4 / pace_seconds(40) + 2)
    assert step(last=True, some=answers[:1]) == [0]
    assert len(step(last=True, some=answers[1:])) == 39
    assert all("".join(texts) == "x" * 102 for texts in sent.values())


def test_what_is_kept_between_the_first_and_the_last_goes_out_when_it_is_time() -> None:
    clock = Clock()
    pacer, answers = Pacer(clock), [started(number) for number in range(32)]
    for answer in answers:
        answer.add(delta(str(answer.number), "x"))
    assert pacer.choose(answers, 32) == answers
    for answer in answers:
        assert [piece.text for piece in answer.part().pieces] == ["x"]
        assert answer.keep is not None
        answer.keep(delta(str(answer.number), "y"))
        answer.keep(delta(str(answer.number), "z"))
    assert pacer.choose([], 32) == []
    clock.now += pace_seconds(32)
    answers[3].left = True
    pacer.forget(answers[4])
    assert [answer.number for answer in pacer.choose([], 32)] == [0, 1, 2, *range(5, 32)]
    assert [piece.text for piece in answers[0].part().pieces] == ["yz"]
    clock.now += pace_seconds(32)
    assert answers[0] not in pacer.choose([], 32), "nothing is new"


def test_few_are_not_held_up_and_what_is_wanted_whole_comes_at_its_end() -> None:
    assert pace_seconds(1) == pace_seconds(4) == 0.0
    assert 0 < pace_seconds(5) < pace_seconds(32) <= pace_seconds(10_000) <= 0.1
    clock = Clock()
    pacer, stream, whole, gone = Pacer(clock), started(1), started(2, whole=True), started(3)
    for count in range(5):
        for answer in (stream, whole, gone):
            answer.add(delta(str(answer.number), "x"))
        gone.left = count > 2
        assert pacer.choose([stream, whole, gone], 3) == ([stream] if gone.left else [stream, gone])
        assert stream.part().pieces[0].text == "x"
        gone.part()
    whole.add(delta("2", "x", last=True))
    assert pacer.choose([whole], 3) == [whole]
    assert whole.part().pieces[0].text == "xxxxxx"


def test_a_long_answer_that_is_wanted_whole_goes_in_parts() -> None:
    pacer, whole = Pacer(), started(1, whole=True)
    texts: list[str] = []
    for _ in range(1000):
        whole.add(delta("1", "x"))
        for answer in pacer.choose([whole], 1):
            texts += [piece.text for piece in answer.part().pieces]
    assert len(texts) > 2
    assert max(map(len, texts)) <= 256
