"""What an operator wishes of a run: that it is proposed, stops, or goes on. Signed, entered in the audit log, done."""

from collections.abc import Sequence

from common.config.rundocument import RunDocument
from common.errors import ConfigError, FederationError
from common.identity.operators import Act
from common.system.files import write_private
from server.coordinator import supervisor
from server.federation.events import INITIAL_NAME, rounds_done
from server.home import purged
from server.home.folder import Home
from server.registry import operators
from server.registry.audit_trail import open_log
from server.registry.proposals import Proposal
from server.registry.registry import Registry

# The document that hospitals approve, in a run's folder: its bytes are what the run's hash is of.
ISSUED_NAME = "run.json"


def stop(home: Home, registry: Registry, signer: operators.Signer, proposal: Proposal) -> str:
    """Withdraw a run. What it has learned stays in its folder.

    Args:
        home: the coordinator's.
        registry: its registry.
        signer: who may stop a run.
        proposal: the run.

    Returns:
        What was done, in a sentence.

    Raises:
        ConfigError: the run has ended already.
    """

    def close(act: Act) -> None:
        rounds = rounds_done(home.run_folder(proposal.document))
        if not registry.close(proposal.run_hash, "stopped", "withdrawn at the coordinator", act, rounds=rounds):
            raise ConfigError(f"{proposal.name} {proposal.run_hash[:8]} is {proposal.state} already.")

    operators.carry_out(home, signer, (proposal.run_hash,), close)
    open_log(home).append("closed", {"run": proposal.run_hash})
    return f"{proposal.name} {proposal.run_hash[:8]} is stopped."


def resume(home: Home, registry: Registry, signer: operators.Signer, proposal: Proposal) -> str:
    """Go on with a failed or stopped run, from its last checkpoint; as `stop`, for who may resume.

    Raises:
        ConfigError: the run is open or completed, or its results were purged.
        FederationError: the coordinator is not running.
    """
    require_running(home)
    purged.check(home.run_folder(proposal.document))

    def reopen(act: Act) -> None:
        registry.reopen(proposal.run_hash, act, operators.endorse(signer, proposal.run_hash, proposal.bundle))
        open_log(home).append("proposed", {"run": proposal.run_hash})

    operators.carry_out(home, signer, (proposal.run_hash,), reopen)
    return f"{proposal.name} {proposal.run_hash[:8]} goes on."


def propose(
    home: Home,
    registry: Registry,
    signers: Sequence[operators.Signer],
    run: RunDocument,
    initial: bytes | None = None,
) -> Proposal:
    """Propose a run to the sites; it starts when its quorum has approved.

    Args:
        home: the coordinator's.
        registry: its registry.
        signers: who may propose a run, one or more.
        run: as it is issued; its text goes to the run's folder, too.
        initial: the weights that its [initial] names.

    Raises:
        ConfigError: the run was proposed before.
        FederationError: the coordinator is not running.
    """
    require_running(home)
    registry.must_be_new(run.hash)
    folder = home.run_folder(run)
    endorsements = [operators.endorse(signer, run.hash, run.bundle) for signer in signers]

    def publish(_act: Act) -> Proposal:
        if initial is not None:
            write_private(folder / INITIAL_NAME, initial)
        proposed = registry.propose(run, endorsements)
        open_log(home).append("proposed", {"run": run.hash})
        return proposed

    proposal = operators.carry_out(home, signers, (run.hash,), publish)
    write_private(folder / ISSUED_NAME, run.text.encode())
    return proposal


def require_running(home: Home) -> None:
    """Refuse what only a running coordinator carries out.

    Raises:
        FederationError: it is not running.
    """
    if not supervisor.is_running(home):
        raise FederationError("the coordinator is not running. Start it with `wardround-server start`, then try again.")


__all__ = ["ISSUED_NAME", "propose", "require_running", "resume", "stop"]
