"""The ClientApp: an ordinary Flower app around what a hospital does (client/train/answer.py).

It runs in a simulation and under a stock SuperNode; a site's worker calls `answer` itself. It reads the site's home
folder from `node_config["home"]` and the run from `run_config["run"]` (canonical JSON). Whatever goes wrong is answered
with a code from the closed list: Flower would send the text of an exception to the coordinator, and a text can name a
patient.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.site import Site, open_site
from client.train.answer import answer
from common.config.rundocument import from_text
from common.console.logs import told
from common.wire.messages import Refusal
from common.wire.records import reply_to_record, request_from_record

_log = logging.getLogger(__name__)


def client_app(find_site: Callable[[Context], Site]) -> ClientApp:
    """A ClientApp for the site that `find_site` names."""
    created = ClientApp()

    @created.train()
    def train(message: Message, context: Context) -> Message:
        return _respond(message, context, find_site)

    @created.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _respond(message, context, find_site)

    return created


def _respond(message: Message, context: Context, find_site: Callable[[Context], Site]) -> Message:
    run_hash, round_ = "", 0
    try:
        request = request_from_record(message.content)
        run_hash, round_ = request.run_hash, request.round
        run = from_text(str(context.run_config["run"]))
        attempt = str(context.run_config.get("attempt") or message.metadata.message_id)
        reply = answer(request, run, find_site(context), attempt)
    except Exception as error:  # noqa: BLE001 - a text must not leave the site, whatever raised it
        reply = Refusal(run_hash, round_, told(_log, error, f"round {round_}"))
    return Message(reply_to_record(reply), reply_to=message)


def _site_of(context: Context) -> Site:
    return open_site(Path(str(context.node_config["home"])))


# Flower loads this name. Defined last: it needs the functions above.
app = client_app(_site_of)

__all__ = ["app", "client_app"]
