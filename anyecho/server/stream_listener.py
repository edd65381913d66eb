"""A listener for streams: accepts connections, and passes them on with what it requires of them."""

from __future__ import annotations

__all__ = ("StreamListener",)

from functools import partial

from anyio import CancelScope

from anyecho.net.accept import Acceptor
from anyecho.net.listen import Listener
from anyecho.net.poller import Fallback, Poller
from anyecho.server.admission import Admission, ListenerPolicy


class StreamListener:
    """Accepts on `listener`, which it closes, and passes each connection to `admission` with `policy`."""

    def __init__(self, listener: Listener, policy: ListenerPolicy, admission: Admission) -> None:
        self.listener = listener
        self._admission = admission
        self._acceptor = Acceptor(
            sock=listener.sock,
            limit=admission.accept_limit(policy),
            hand_over=partial(admission.admit, policy),
            errors=admission.stats.accept_errors,
            preparation=listener.preparation,
            batch=admission.accept_batch,
        )
        self._policy = policy
        self._scope = CancelScope()

    @property
    def policy(self) -> ListenerPolicy:
        """What is required of its connections. A new policy is for those accepted from now on."""
        return self._policy

    @policy.setter
    def policy(self, policy: ListenerPolicy) -> None:
        self._policy = policy
        self._acceptor.hand_over = partial(self._admission.admit, policy)

    async def run(self, poller: Poller | Fallback) -> None:
        """Accept until stopped or cancelled. Raises `OSError` if it can accept no more."""
        try:
            with self._scope:
                await self._acceptor.run(poller)
        finally:
            self.stop(poller)
            self.listener.close()

    def accept_backlog(self, size: int) -> None:
        """Accept all connections in the backlog of `size`, if limits allow it. No more get into it."""
        self.listener.admit_no_more()
        # The kernel holds one more connection than the backlog of listen(2).
        self._acceptor.accept_some(size + 1)

    def stop(self, poller: Poller | Fallback) -> None:
        """Stop listening before this returns. `run` returns soon afterwards."""
        self._acceptor.stop()
        poller.unregister(self.listener.sock)
        self.listener.stop()
        self._scope.cancel()
