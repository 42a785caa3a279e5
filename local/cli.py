"""The `darkroom` command: what may be typed, and exit codes. What a command does is in the module it imports."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

if TYPE_CHECKING:
    from local.client import Client


class Exit(IntEnum):
    """What the command's end says to a script; --help lists them."""

    FINE = 0
    NOT_COMPLETED = 1
    WRONG_USE = 2
    NO_SERVER = 3
    INTERRUPTED = 130


_EPILOG = (
    "Exit codes: 0 fine · 1 a job did not complete · 2 wrong use or configuration · 3 no server or connection."
    " With --json, stdout carries one JSON object a line and nothing else."
)
app = typer.Typer(
    help="Photos and prompts to images with Google's Gemini models, on this machine.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
deadletters = typer.Typer(help="Messages that were given up.", no_args_is_help=True, epilog=_EPILOG)
app.add_typer(deadletters, name="deadletters")

Server = Annotated[str, typer.Option("--server", envvar="DARKROOM_URL", help="Where the API answers.")]
Token = Annotated[
    str | None,
    typer.Option("--token", envvar="DARKROOM_TOKEN", show_envvar=True, help="Bearer token, where one must sign in."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
Out = Annotated[Path | None, typer.Option("--out", file_okay=False, help="Wait, and save the pictures in this folder.")]
DataDir = Annotated[Path, typer.Option("--data-dir", file_okay=False, help="Where jobs and pictures are kept.")]
NumImages = Annotated[int, typer.Option("--num-images", "-n", min=1, max=4, help="Pictures of each job.")]
Style = Annotated[str | None, typer.Option("--style", help="A named recipe; a wrong name lists them.")]
Photo = typer.Argument(exists=True, dir_okay=False, readable=True, show_default=False)

_here = "http://127.0.0.1:8080"
_data_dir = Path(".darkroom")


@app.command(epilog=_EPILOG)
def serve(
    host: Annotated[str, typer.Option(envvar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="PORT", min=0, max=65535, help="0 takes a free one.")] = 8080,
    data_dir: DataDir = _data_dir,
    engine: Annotated[
        Literal["embedded", "google"], typer.Option(help="google: on Google's emulators, see docs/cloud.md.")
    ] = "embedded",
    duplicate_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of messages delivered twice, to try it out.")
    ] = 0.0,
    reorder_s: Annotated[float, typer.Option(min=0, help="Delay each message by up to so many seconds.")] = 0.0,
) -> None:
    """Serve API and pipeline on this machine, until Ctrl-C."""
    from local.serving import serve_until_signal

    if engine == "google" and (duplicate_rate or reorder_s):
        _end("--duplicate-rate and --reorder-s are the embedded bus's; leave them out", Exit.WRONG_USE)
    _run(
        lambda: serve_until_signal(
            data_dir, host, port, engine=engine, duplicate_rate=duplicate_rate, reorder_s=reorder_s
        ),
        serves=True,
    )


@app.command(epilog=_EPILOG)
def submit(
    photos: Annotated[list[Path], Photo],
    style: Style = None,
    prompt: Annotated[str | None, typer.Option(help="A wish of yours, in a sentence.")] = None,
    num_images: NumImages = 1,
    wait: Annotated[bool, typer.Option("--wait", help="Follow each job to its end.")] = False,
    out: Out = None,
    json: Json = False,
    server: Server = _here,
    token: Token = None,
) -> None:
    """Upload photos, each for a portrait of its own."""
    from local.submit import Wishes
    from local.submit import submit as submit_photos

    order = _order(style=style, prompt=prompt, num_images=num_images)
    _ask(server, token, lambda client: submit_photos(client, photos, order, Wishes(wait, out, json)))


@app.command(epilog=_EPILOG)
def imagine(
    prompt: Annotated[str, typer.Argument(help="What the picture shows.", show_default=False)],
    style: Style = None,
    num_images: NumImages = 1,
    aspect_ratio: Annotated[str | None, typer.Option(help="Width to height, e.g. 16:9.")] = None,
    wait: Annotated[bool, typer.Option(help="Follow the job to its end.")] = True,
    out: Out = None,
    json: Json = False,
    server: Server = _here,
    token: Token = None,
) -> None:
    """Make images from words."""
    from local.submit import Wishes
    from local.submit import imagine as imagine_words

    order = _order(style=style, prompt=prompt, num_images=num_images, aspect_ratio=aspect_ratio)
    _ask(server, token, lambda client: imagine_words(client, order, Wishes(wait, out, json)))


@app.command(epilog=_EPILOG)
def watch(
    job: Annotated[str, typer.Argument(help="The job's id.", show_default=False)],
    json: Json = False,
    server: Server = _here,
    token: Token = None,
) -> None:
    """Follow a job live until it is done."""
    from local.submit import watch as watch_job

    _ask(server, token, lambda client: watch_job(client, job, as_json=json))


@app.command(epilog=_EPILOG)
def demo(
    photo: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, readable=True, help="A photo.")] = None,
    real: Annotated[bool, typer.Option("--real", help="Ask Google with GEMINI_API_KEY; this costs money.")] = False,
    data_dir: DataDir = _data_dir,
) -> None:
    """One photo all the way through, explained; without --real no key is ever used."""
    from local.demo import run_demo

    _run(lambda: run_demo(photo, real=real, data_dir=data_dir), serves=True)


@deadletters.command("list", epilog=_EPILOG)
def list_letters(data_dir: DataDir = _data_dir, json: Json = False) -> None:
    """What was given up, the newest first; a server may be running."""
    from local.letters import list_letters as list_them

    _run(lambda: list_them(data_dir, as_json=json))


@deadletters.command("replay", epilog=_EPILOG)
def replay_letters(
    letter: Annotated[int | None, typer.Argument(metavar="[ID]", help="From `deadletters list`.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    data_dir: DataDir = _data_dir,
) -> None:
    """Queue them again with a fresh count of attempts."""
    from local.letters import replay_letters as replay_them

    if (letter is None) is not everything:
        _end("name one ID or --all; `darkroom deadletters list` shows them", Exit.WRONG_USE)
    _run(lambda: replay_them(data_dir, letter))


def main() -> None:
    """The console script's entry."""
    app(prog_name="darkroom")


def _order(**wishes: object) -> dict[str, object]:
    return {name: wish for name, wish in wishes.items() if wish is not None}


def _ask(server: str, token: str | None, work: Callable[["Client"], Awaitable[bool]]) -> None:
    async def with_client() -> bool:
        from local.client import Client

        async with Client(server, token) as client:
            return await work(client)

    _run(with_client)


def _run(begin: Callable[[], Coroutine[Any, Any, bool | None]], *, serves: bool = False) -> None:
    """Run it and end with the exit code; whatever a person can mend becomes one line on stderr.

    What serves runs on uvicorn's choice of event loop: uvloop takes a fifth less CPU for a job.
    A bug of ours still shows its traceback: there is nothing else it could say.
    """
    from common.errors import DarkroomError
    from local.client import NoServer, Refused
    from local.photos import WrongUse

    try:
        with asyncio.Runner(loop_factory=_loop_factory() if serves else None) as runner:
            went_well = runner.run(begin())
    except WrongUse as exc:
        _end(str(exc), Exit.WRONG_USE)
    except Refused as exc:
        _end(str(exc), Exit.WRONG_USE if exc.is_wrong_use else Exit.NO_SERVER)
    except NoServer as exc:
        _end(str(exc), Exit.NO_SERVER)
    except DarkroomError as exc:
        _end(f"{exc.detail} ({exc.code})", Exit.WRONG_USE)
    except BrokenPipeError:
        # Whoever read our output has heard enough; Python would complain once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(Exit.FINE) from None
    except OSError as exc:
        _end(f"{exc.strerror or exc}: {exc.filename or ''}".rstrip(": "), Exit.WRONG_USE)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(Exit.INTERRUPTED) from None
    if went_well is False:
        raise typer.Exit(Exit.NOT_COMPLETED)


def _end(text: str, code: Exit) -> NoReturn:
    from local.progress import printable

    lines = [printable(line) for line in text.splitlines()]
    typer.echo("darkroom: " + "\n".join(lines), err=True)
    raise typer.Exit(code)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    from uvicorn.loops.auto import auto_loop_factory

    return auto_loop_factory()


if __name__ == "__main__":
    main()
