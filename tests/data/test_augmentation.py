# SPDX-License-Identifier: Apache-2.0
"""Swapped examples are still true: the same intent and keys, and every copied value is in the new input."""

import json
import random

from open_autoglm.chat.messages import Message, Role
from open_autoglm.data import Example, PreparedData, swap_slot_values, values_by_key
from open_autoglm.data.answers import canonical_answer
from open_autoglm.words import is_copied


def example(text: str, answer: object) -> Example:
    content = json.dumps(answer, ensure_ascii=False)
    return Example((Message(Role.SYSTEM, "s"), Message(Role.USER, text), Message(Role.ASSISTANT, content)), "a:1")


def leaves(value: object, path: tuple[object, ...] = ()) -> dict[tuple[object, ...], str]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in leaves(inner, (*path, key)).items()}
    if isinstance(value, list):
        return {k: v for place, inner in enumerate(value) for k, v in leaves(inner, (*path, place)).items()}
    return {path: value} if isinstance(value, str) else {}


def test_snips_examples_stay_true(snips: PreparedData) -> None:
    values, generator = values_by_key(snips.train), random.Random(0)
    changed = 0
    for before in snips.train[:3000]:
        after = swap_slot_values(before, values, generator)
        old, new = json.loads(before.answer), json.loads(after.answer)
        assert new["intent"] == old["intent"]
        assert list(new["slots"]) == list(old["slots"])
        assert all(is_copied(value, after.input_text) for path, value in leaves(new).items() if path != ("intent",))
        assert canonical_answer(after.answer, snips.task.answer_schema) == after.answer
        assert len(after.input_text) - len(before.input_text) == sum(
            len(leaves(new)[path]) - len(value) for path, value in leaves(old).items()
        )
        changed += after != before
    assert changed > 1500


def test_the_generator_decides_everything(snips: PreparedData) -> None:
    values = values_by_key(snips.train)
    runs = [
        [swap_slot_values(row, values, generator) for row in snips.train[:200]]
        for generator in (random.Random(3), random.Random(3), random.Random(4))
    ]
    assert runs[0] == runs[1] != runs[2]


def always_swap(row: Example, rows: list[Example]) -> set[str]:
    """Everything that the input can become."""
    values = values_by_key(rows)
    return {swap_slot_values(row, values, random.Random(seed)).input_text for seed in range(60)}


def test_values_come_from_the_same_key_of_answers_with_the_same_fixed_strings() -> None:
    rows = [
        example("play jazz", {"intent": "Play", "genre": "jazz"}),
        example("play rock", {"intent": "Play", "genre": "rock"}),
        example("read crime", {"intent": "Read", "genre": "crime"}),
        example("read poems", {"intent": "Read", "genre": "poems"}),
    ]
    assert always_swap(rows[0], rows) == {"play jazz", "play rock"}
    assert always_swap(rows[2], rows) == {"read crime", "read poems"}


def test_values_of_one_kind_stand_for_each_other_beside_other_fixed_strings() -> None:
    def rows(intent: str, names: list[str]) -> list[Example]:
        return [example(f"{intent} {name}", {"intent": f"to-{intent}", "place": name}) for name in names]

    lands = [f"land{number}" for number in range(20)]
    booked, forecast = lands[:13], lands[8:]  # five in common
    few = [*lands[:4], "nowhere"]  # too few to tell from
    books = [f"title{number}" for number in range(60)]
    films = [f"title{number}" for number in range(55, 115)]  # five of sixty
    found = values_by_key(
        [*rows("book", booked), *rows("tell", forecast), *rows("go", few), *rows("rate", books), *rows("watch", films)]
    )
    by_intent = {json.loads(key.partition(" in ")[2])[0][-1]: values for key, values in found.items()}
    assert by_intent == {
        "to-book": sorted(lands),
        "to-tell": sorted(lands),
        "to-go": sorted(few),
        "to-rate": sorted(books),
        "to-watch": sorted(films),
    }


def test_snips_countries_are_of_one_kind_and_titles_are_not(snips: PreparedData) -> None:
    found = values_by_key(snips.train)

    def at(name: str, intent: str) -> set[str]:
        return set(found[f'["slots", "{name}"] in [["intent", "{intent}"]]'])

    assert at("country", "BookRestaurant") == at("country", "GetWeather")
    assert at("state", "BookRestaurant") == at("state", "GetWeather")
    assert at("object_name", "RateBook") != at("object_name", "SearchCreativeWork")


def test_values_that_stand_twice_or_overlap_or_have_no_substitute_stay() -> None:
    rows = [
        example("six or six", {"n": "six"}),
        example("give five", {"n": "five"}),
        example("the red car", {"whole": "red car", "part": "car"}),
        example("the new bus", {"whole": "new bus", "part": "bus"}),
        example("one of a kind", {"only": "one of a kind"}),
    ]
    assert always_swap(rows[0], rows) == {"six or six"}
    assert always_swap(rows[2], rows) == {"the red car"}
    assert always_swap(rows[4], rows) == {"one of a kind"}


def test_lists_and_earlier_turns_are_kept_in_order() -> None:
    rows = [
        example("from rome to oslo", {"cities": ["rome", "oslo"]}),
        example("from bonn to graz", {"cities": ["bonn", "graz"]}),
    ]
    values = values_by_key(rows)
    for seed in range(40):
        after = swap_slot_values(rows[0], values, random.Random(seed))
        first, second = json.loads(after.answer)["cities"]
        assert after.input_text == f"from {first} to {second}"
        assert after.messages[0] == rows[0].messages[0]
        assert after.source == rows[0].source


def made_up(rows: list[Example], field: str, seeds: int = 400) -> tuple[list[str], set[str]]:
    """What the field of the first row becomes where it is swapped, and the values that it has in all rows."""
    values = values_by_key(rows)
    known = {str(json.loads(row.answer)[field]) for row in rows}
    became = [
        str(json.loads(swap_slot_values(rows[0], values, random.Random(seed)).answer)[field]) for seed in range(seeds)
    ]
    return [value for value in became if value != json.loads(rows[0].answer)[field]], known


def test_as_many_values_are_new_as_came_once() -> None:
    words = [first + last for first in "bdfgklmnpr" for last in ("alo", "emu", "iso", "oke")]
    titles = [f"{first} {last}" for first, last in zip(words[::2], words[1::2], strict=True)]
    months = ["may", "june", "july", "march"]
    rows = [
        example(f"see {title} in {months[number % 4]}", {"title": title, "month": months[number % 4]})
        for number, title in enumerate(titles)
    ]
    values = values_by_key(rows)
    assert {json.loads(key.partition(" in ")[0])[0]: share for key, share in values.unseen.items()} == {
        "title": 1.0,
        "month": 0.0,
    }
    became, known = made_up(rows, "month")
    assert became
    assert set(became) <= known
    became, known = made_up(rows, "title")
    new = [value for value in became if value not in known]
    assert len(new) > 0.6 * len(became)
    # Ten of twenty titles come twice: of thirty values a third came once, and about as many are new.
    often = [*rows[:10], *rows[10:], *rows[10:]]
    assert {round(share, 2) for share in values_by_key(often).unseen.values()} == {0.33, 0.0}
    became, known = made_up(often, "title")
    assert 0.15 < sum(value not in known for value in became) / len(became) < 0.4


def test_new_values_are_made_of_two() -> None:
    names = [first + last for first in ("ab", "cd", "ef", "gh", "ij") for last in ("uvw", "xyz", "rst", "opq")]
    rows = [example(f"call {name} now", {"name": name}) for name in names]
    became, known = made_up(rows, "name")
    new = set(became) - known
    assert new
    for value in new:
        assert any(
            value == one[:cut] + other[rest:]
            for one in names
            for other in names
            for cut in range(1, len(one))
            for rest in range(1, len(other))
        ), value


def test_of_few_values_none_is_made_up() -> None:
    rows = [example(f"call {name} now", {"name": name}) for name in ("anna", "berta", "carla", "dora")]
    became, known = made_up(rows, "name")
    assert became
    assert set(became) <= known


def test_chinese_names_are_made_up_of_their_characters() -> None:
    names = [family + given for family in "王李张刘陈" for given in ("小明", "国华", "建军", "美丽")]
    rows = [example(f"请打给{name}吧", {"姓名": name}) for name in names]
    became, known = made_up(rows, "姓名")
    new = set(became) - known
    assert new
    characters = set("".join(names))
    assert all(set(value) <= characters for value in new)


def test_chinese_values_are_swapped_where_no_space_stands_around_them() -> None:
    rows = [
        example("请播放周杰伦的晴天", {"意图": "播放", "歌手": "周杰伦", "歌名": "晴天"}),
        example("我想听王菲唱的红豆", {"意图": "播放", "歌手": "王菲", "歌名": "红豆"}),
        example("播放王菲的匆匆那年吧", {"意图": "播放", "歌手": "王菲", "歌名": "匆匆那年"}),
    ]
    made = always_swap(rows[0], rows)
    assert {"请播放王菲的晴天", "请播放周杰伦的红豆", "请播放王菲的匆匆那年"} <= made
    values = values_by_key(rows)
    for seed in range(40):
        after = swap_slot_values(rows[1], values, random.Random(seed))
        answer = json.loads(after.answer)
        assert answer["意图"] == "播放"
        assert after.input_text == f"我想听{answer['歌手']}唱的{answer['歌名']}"
