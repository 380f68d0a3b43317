# SPDX-License-Identifier: Apache-2.0
"""The loop that tries mutated bundles on us, and counts what becomes of them."""

import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from open_autoglm.bundle import BundleManifest, sign_bundle, write_bundle
from open_autoglm.bundle.huggingface import write_tokenizer
from open_autoglm.bundle.keys import VerifyingKey, create_key_files, read_signing_key, read_verifying_key
from open_autoglm.errors import OpenAutoGLMError
from open_autoglm.models.checkpoint import save_model
from tests.bundle.mutations import ATTACKERS, Files, Sandbox, read_files, write_files
from tests.engine.tiny_bundle import EXTRACTION, make_config, make_model, make_tokenizer


def make_target(folder: Path) -> tuple[Files, VerifyingKey]:
    """A signed bundle of a very small model, in memory, and the key."""
    tokenizer = make_tokenizer()
    config = make_config(
        tokenizer,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    staging = folder / "staging"
    staging.mkdir(parents=True)
    save_model(make_model(config), staging)
    write_tokenizer(tokenizer, staging, max_length=config.max_position_embeddings)
    manifest = BundleManifest(
        name="target", task=EXTRACTION.to_dict(), architecture=config.architecture, parameters=config.num_parameters()
    )
    bundle = write_bundle(folder / "target", staging, manifest).path
    key = create_key_files(folder / "release", {})
    sign_bundle(bundle, read_signing_key(key.private, {}))
    return read_files(bundle), read_verifying_key(key.public)


def fuzz(original: Files, key: VerifyingKey, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Try `count` mutations. Returns what became of them."""
    generator = random.Random(seed)
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in ATTACKERS}
    kinds: Counter[str] = Counter()
    accepted: list[str] = []
    crashes: list[str] = []
    started = time.monotonic()
    sandbox = Sandbox(folder / "try")
    with sandbox:
        for number in range(count):
            name = list(ATTACKERS)[number % len(ATTACKERS)]
            attacker = ATTACKERS[name]
            mutation = attacker.mutate(original, random.Random(generator.getrandbits(64)))
            kinds[mutation.kind] += 1
            target = folder / "try" / "bundle"
            with sandbox.paused():
                write_files(target, mutation.files)
            try:
                outcome = attacker.attempt(target, key, mutation)
            except OpenAutoGLMError as error:
                outcome = f"refused: {type(error).__name__}"
                if not str(error).isprintable():
                    crashes.append(f"{number} {mutation.kind}: a message that is not printable")
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                outcome = "crash"
                crashes.append(f"{number} {mutation.kind}: {type(error).__name__}: {str(error)[:200]}")
            outcomes[name][outcome] += 1
            if outcome == "accepted":
                accepted.append(f"{number} {mutation.kind}")
            if number % 5000 == 4999:
                print(f"{number} of {count}, {time.monotonic() - started:.0f} s", file=sys.stderr)
    return {
        "mutations": count,
        "seed": seed,
        "outcomes": {name: dict(counter.most_common()) for name, counter in outcomes.items()},
        "kinds": dict(kinds.most_common()),
        "accepted": accepted,
        "crashes": crashes,
        "written_outside": sandbox.written_outside,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "seconds": round(time.monotonic() - started, 1),
    }
