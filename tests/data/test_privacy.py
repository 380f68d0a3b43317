# SPDX-License-Identifier: Apache-2.0
"""Personal data and secrets are found by form and check digit, and masked without breaking anything around them."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_autoglm.data import FindingKind, PreparedData, prepare, privacy
from open_autoglm.data.changes import undo_changes
from open_autoglm.data.privacy import find_private, mask_private


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to Bob.Smith+x@mail.example.org, please", "write to [EMAIL], please"),
        ("邮箱是zhang_wei@example.cn。", "邮箱是[EMAIL]。"),
        ("call (415) 555-2671 or +44 20 7946 0958", "call [PHONE] or [PHONE]"),
        ("电话13812345678，座机010-62345678", "电话[PHONE]，座机[PHONE]"),
        ("打+86 138 1234 5678找我", "打[PHONE]找我"),
        ("身份证号11010519491231002X", "身份证号[ID_NUMBER]"),
        ("card 4111 1111 1111 1111 and 5500-0000-0000-0004", "card [CARD] and [CARD]"),
        ("pay to GB82 WEST 1234 5698 7654 32", "pay to [IBAN]"),
        ("from 8.8.8.8 and 2001:4860:4860::8888", "from [IP] and [IP]"),
        ("AKIAIOSFODNN7EXAMPLE is it", "[SECRET] is it"),
        ("密码：hunter2abc，请保密", "密码：[SECRET]，请保密"),
        ('api_key = "a8f3k2m9x1z7"', 'api_key = "[SECRET]"'),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "[SECRET]"),
        ("t Zx9Kq2Lw7Rt4Yp8Vb3Nm6Hj1Df5Gs0Ac", "t [SECRET]"),
    ],
)
def test_what_is_private_is_masked(text: str, masked: str) -> None:
    assert mask_private(text) == masked
    assert find_private(mask_private(text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "身份证号110105194912310021",
        "card 4111 1111 1111 1112",
        "order 1381234567890, version 1.2.3.4, at 127.0.0.1 or 192.168.0.1",
        "on 2021-03-04 at 10:30:22 for 1,234,567.89",
        "@someone said a@b, password: please enter it",
        "GB82 WEST 1234 5698 7654 33",
        "https://example.org/a/very/long/path/to/some/document_with_a_name_2021",
        "the number 3.14159265358979323846264338327950288",
        "token of my gratitude; the secret is patience",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert mask_private(text) == text


def test_json_stays_json() -> None:
    text = '{"phone": 13812345678, "mail": "a@example.org", "n": [3, true, null, 1.5]}'
    assert json.loads(mask_private(text)) == {"phone": "[PHONE]", "mail": "[EMAIL]", "n": [3, True, None, 1.5]}


@pytest.mark.parametrize(
    "text", ["a" * 50_000 + "@", "1 " * 25_000, "-----BEGIN PRIVATE KEY-----" * 500, "a:" * 20_000]
)
def test_no_text_takes_long(text: str) -> None:
    started = time.process_time()
    find_private(text)
    assert time.process_time() - started < 2


def rows() -> list[dict[str, str]]:
    words = ["苹果", "香蕉", "西瓜", "葡萄", "草莓", "橙子", "桃子", "樱桃", "芒果", "石榴", "柚子", "荔枝"]
    texts = [
        f"客户想要{a}和{b}，请尽快送到{n}号楼" for n, (a, b) in enumerate(zip(words * 5, (words * 6)[5:], strict=False))
    ]
    made = [{"内容": text, "回答": f"好的，{text[4:6]}已经安排配送。"} for text in texts]
    made[7]["内容"] += "，电话13812345678"
    made[7]["回答"] += "我们会打13812345678。"
    made[9]["回答"] = "密钥：sk-abcdefghijklmnop12345678"
    return made


def write(path: Path) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows()), encoding="utf-8")
    return path


def everything(prepared: PreparedData) -> str:
    return json.dumps([e.to_dict() for e in (*prepared.train, *prepared.valid, *prepared.test)], ensure_ascii=False)


def test_rows_are_reported_and_masked_on_request_and_can_be_restored(tmp_path: Path) -> None:
    path = write(tmp_path / "工单.jsonl")
    kept = prepare(path, task="instruction")
    assert {f.what: f.rows for f in kept.report.of_kind(FindingKind.PRIVATE)} == {
        "phone number; kept, --mask-pii masks it": {"工单.jsonl": "8"},
        "key, token or password; kept, --mask-pii masks it": {"工单.jsonl": "10"},
    }
    assert "13812345678" in everything(kept)
    masked = prepare(path, task="instruction", mask_pii=True)
    text = everything(masked)
    assert "13812345678" not in text and "sk-abc" not in text
    assert text.count("[PHONE]") == 2 and text.count("[SECRET]") == 1
    assert [f.what for f in masked.report.of_kind(FindingKind.PRIVATE)] == [
        "phone number; masked",
        "key, token or password; masked",
    ]
    masked.save(tmp_path / "run")
    assert (tmp_path / "run" / "changes.jsonl").stat().st_mode & 0o777 == 0o600
    (original,) = undo_changes({s: getattr(masked, s) for s in ("train", "valid", "test")}, tmp_path / "run").values()
    assert [{"内容": e.input_text, "回答": e.answer} for e in original] == rows()


_PIECES = st.sampled_from([
    "11010519491231002X", "4111 1111 1111 1111", "+86 13812345678", "(415) 555-2671", "1.2.3.4", "version 1.2.3.4", "X",
    "GB82 WEST 1234 5698 7654 32", "（010）12345678", "é", "１２", "\n", " ", "-", ".", "+", "(", "AB12", "0086", "ab",
])  # fmt: skip


@settings(max_examples=300)
@given(st.lists(_PIECES | st.text("0123456789 .:-+()aXZ（", max_size=4), max_size=10).map("".join))
def test_where_a_number_begins_leaves_nothing_out(text: str) -> None:
    for kind in ("ID_NUMBER", "IBAN", "CARD", "PHONE", "IPV4"):
        begins, pattern = getattr(privacy, f"_{kind}_BEGINS"), getattr(privacy, f"_{kind}")
        found = [match.span() for match in privacy._matches(begins, pattern, text)]
        assert found == [match.span() for match in pattern.finditer(text)], kind
