# SPDX-License-Identifier: Apache-2.0
"""A few hundred varied texts by which two tokenizers are compared: many scripts, numbers, code, spaces and marks."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Final

_SENTENCES: Final = (
    "Add the new song by Neil Young to my road-trip playlist.",
    "What's the weather going to be in Kansas City tomorrow at 5:30 p.m.?",
    "I don't think they've said we'll be there; he'd say it's HIS idea, but you're right, I'm late.",
    "DON'T SHOUT, IT'S LATE AND WE'RE TIRED",
    "He said 'single quotes' and \"double quotes\", then left (quietly).",
    "Call 020-7946-0958 or +1 (415) 555-2671 before 2024-12-31.",
    "In 1984 the price was $1,234,567.89, about 12345678 units, 7% more than in 1983.",
    "Room 42, floor 3, building 10007, code 00123456789.",
    "my_variable_name = some_function(x_1, y_2)[0]  # snake_case",
    "camelCaseWords XMLHttpRequest iPhone15Pro v2.3.1-beta",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i] * b[i];\n}\n",
    "def f(x):\n    return x ** 2 if x > 0 else -x\n",
    '{"intent": "BookRestaurant", "slots": {"party_size": 4, "city": "Zürich"}}',
    '<p class="x">Tom &amp; Jerry</p> https://example.org/a?b=1&c=d#e user@example.org',
    "naïve café résumé Ångström Straße Œuvre façade jalapeño",
    "L'été, c'est l'heure où l'on n'a qu'à rêver d'une île.",
    "Der Übergang über die Brücke dauert länger als 100 m.",
    "El niño comió piñas y bebió café; ¿verdad? ¡Sí!",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Η γρήγορη καφέ αλεπού πηδάει πάνω από το σκυλί.",
    "今天天气很好，我们去公园散步吧。",
    "请把这句话翻译成英文：人工智能正在改变世界！",
    "订单号20240315001，共计￥1280.50元，预计3天内送达。",
    "我用Python写了一个GLM模型，准确率达到了97.5%。",
    "他说：“你好，世界”，然后走了……",
    "繁體中文測試：圖書館、國語、電腦",
    "これはテストです。カタカナとひらがな、漢字123。",
    "안녕하세요, 오늘 날씨가 정말 좋네요! 3시에 만나요.",
    "हिन्दी में यह एक छोटा सा वाक्य है।",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "اللغة العربية تُكتب من اليمين إلى اليسار ١٢٣٤٥",
    "עברית נכתבת מימין לשמאל",
    "Tiếng Việt có nhiều dấu thanh điệu.",
    "e\u0301 decomposed a\u0308 n\u0303 and composed é ä ñ",
    "emoji 😀🎉 family 👨‍👩‍👧 flag 🇨🇳 thumbs 👍🏽!",
    "math: ∑ᵢ xᵢ² ≤ ∫ f(x) dx, α→β, 5 × 3 ≠ 16, ½ ¾ x³",
    "tabs\tand\t\tmore\ttabs, trailing spaces   ",
    "   leading spaces, double  spaces   triple",
    "line one\nline two\r\nline three\n\n\nline six",
    "a\n \n  b \n\n   c",
    "!!! ??? ... --- *** ### $$$ ~~~ ^^ @@ ||",
    "a.b,c;d:e!f?g/h\\i|j",
    "x=1;y=22;z=333;w=4444;v=55555;u=666666;t=7777777",
    "1 12 123 1234 12345 123456 1234567 0.001 1e-10 3.14159265",
    "full－width ＡＢＣ １２３ （括号）！？",
    "zero\u200bwidth non\u00a0breaking\u3000ideographic",
)
_WORDS: Final = ("playlist", "今天", "été", "2024", "don't", "Neil Young", "订单", "weather?")
_JOINTS: Final = (" ", "\n", ", ", "", ' "', "  ", "_", " 42 ", "。", "...", "\t", " (", "-", "' ", "\r\n\r\n")


def sample_texts() -> list[str]:
    """The same texts at every call: whole sentences, neighbours of them, and pairs of words around joints."""
    following = pairwise(_SENTENCES)
    pairs = product(range(len(_WORDS)), _JOINTS)
    mixed = [f"{_WORDS[place]}{joint}{_WORDS[(place * 3 + len(joint) + 1) % len(_WORDS)]}" for place, joint in pairs]
    return [*_SENTENCES, *(f"{first} {second}" for first, second in following), *mixed]
