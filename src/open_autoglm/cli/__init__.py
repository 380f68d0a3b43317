# SPDX-License-Identifier: Apache-2.0
"""The `open-autoglm` command: one file per command, each thin over the Python face."""

from __future__ import annotations

# What is loaded here is loaded before `main` can answer Ctrl-C, so only what Python has loaded already.
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, TextIO

    import typer

_INTERRUPTED = 130


def create_app() -> typer.Typer:
    """The command tree, built on call so that importing this package costs nothing."""
    import typer

    from open_autoglm.cli import (
        build,
        chat,
        data,
        diff,
        distil,
        doctor,
        eval,  # noqa: A004
        export,
        inspect,
        keygen,
        keys,
        leaderboard,
        pack,
        package,
        plan,
        plugin,
        prune,
        pull,
        push,
        quantize,
        run,
        runs,
        serve,
        sign,
        stages,
        validate,
        verify,
        worker,
    )

    app = typer.Typer(
        name="open-autoglm",
        help="From a file of data to a served language model of the GLM family.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    bundle_commands = (
        plan, quantize, prune, distil, export, pack, inspect, diff, verify, keygen, sign, push, pull, package,
    )  # fmt: skip
    pipeline_commands = (run, validate, runs, worker, stages, plugin)
    for module in (build, leaderboard, data, eval, chat, serve, keys, *bundle_commands, *pipeline_commands, doctor):
        module.register(app)
    return app


def main() -> None:
    """Run the command line. Faults that we know are one clear line on stderr, and an exit code of their own."""
    try:
        _run()
    except KeyboardInterrupt:
        # An import that is interrupted may leave others to fail, so there is nothing to be done but to go.
        _stop()


def _run() -> None:
    import typer
    from typer.exceptions import TyperException

    from open_autoglm.errors import OpenAutoGLMError

    wants_json = "--json" in sys.argv[1:]
    # Before torch is loaded: OpenMP's threads otherwise keep a core from the work that they wait for.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    _shorten_warnings()
    try:
        code = create_app()(sys.argv[1:] or ["--help"], standalone_mode=False)
    except OpenAutoGLMError as error:
        _complain(str(error), type(error).__name__, wants_json)
        raise SystemExit(error.exit_code) from None
    except TyperException as error:
        context = getattr(error, "ctx", None)
        advice = "" if context is None else f" (see {context.command_path} --help)"
        _complain(error.format_message().rstrip(".") + advice, "UsageError", wants_json)
        raise SystemExit(error.exit_code) from None
    except typer.Abort:
        _stop()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except Exception as error:
        if os.environ.get("OPEN_AUTOGLM_DEBUG"):
            raise
        _complain(
            f"internal error ({type(error).__name__}: {error}); this is a fault of Open-AutoGLM: please report it with "
            "what OPEN_AUTOGLM_DEBUG=1 prints",
            "InternalError",
            wants_json,
        )
        raise SystemExit(70) from None
    if code == _INTERRUPTED:
        _stop()  # the library makes an exit code of Ctrl-C by itself, and says nothing
    raise SystemExit(code if isinstance(code, int) else 0)


def _stop() -> NoReturn:
    print("stopped", file=sys.stderr)  # noqa: T201
    raise SystemExit(_INTERRUPTED) from None


def _shorten_warnings() -> None:
    """Our own warnings are a line that says what is the matter, without the line of code that noticed it."""
    import warnings

    usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category.__module__.startswith("open_autoglm"):
            print(f"warning: {message}", file=sys.stderr)  # noqa: T201
        else:
            usual(message, category, filename, lineno, file, line)

    warnings.showwarning = show


def _complain(message: str, kind: str, wants_json: bool) -> None:
    print(f"error: {message}", file=sys.stderr)  # noqa: T201
    if wants_json:
        import json

        print(json.dumps({"error": {"type": kind, "message": message}}, ensure_ascii=False))  # noqa: T201
