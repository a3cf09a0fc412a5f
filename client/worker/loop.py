"""What a worker does all day: read a question, answer it, as the ClientApp answers everywhere else.

torch is imported once, the cohort read once per run. What goes wrong is told to the agent as a code; the reason
stays in home/logs/worker.log.
"""

import logging
from pathlib import Path

import torch

from client.home import sitekey
from client.site import open_site
from client.train.answer import answer as answer_request
from client.train.answer import offer_of
from client.worker import protocol
from client.worker.protocol import Answer, Describe, Question
from common.config import SiteConfig, load
from common.console.logs import told
from common.wire.messages import Refusal

_log = logging.getLogger(__name__)


def serve(home: Path, questions: int, answers: int, network: str) -> None:
    """Say that we are ready, then answer until the pipe is closed.

    Args:
        home: the site's home folder.
        questions: file descriptor to read from.
        answers: file descriptor to write to.
        network: "removed", or why it was not.
    """
    threads = load(SiteConfig, home / "site.toml").threads
    if threads is not None:
        torch.set_num_threads(threads)
    _log.info("ready: torch %s, %d threads", torch.__version__, torch.get_num_threads())
    sitekey.hold(home, protocol.key_from_frame(protocol.receive(questions)))
    protocol.send(answers, protocol.answer_to_frame(protocol.Ready(network)))
    while (frame := protocol.receive(questions)) is not None:
        protocol.send(answers, protocol.answer_to_frame(answer(protocol.question_from_frame(frame), home)))


def answer(question: Question, home: Path) -> Answer:
    """Do what the agent asks; a failure becomes a Refusal, its reason is logged here.

    Raises:
        torch.AcceleratorError: the GPU has failed. A process that used it never can again (CUDA's errors are sticky),
            so this one ends; the agent starts another and asks it once more.
    """
    run = question.run
    try:
        site = open_site(home)
        if isinstance(question, Describe):
            return offer_of(site.cohort(run.config, keep=False), run.config)
        return answer_request(question.request, run, site, question.attempt)
    except torch.AcceleratorError:
        _log.error("the GPU has failed; this worker ends, and the next one looks for what is there")
        raise
    except Exception as error:  # noqa: BLE001 - a text must not leave, whatever raised it
        round_ = 0 if isinstance(question, Describe) else question.request.round
        return Refusal(run.hash, round_, told(_log, error, f"run {run.name!r} round {round_}"))
