"""All faults that can happen to a testbed, one at a time."""

import contextlib
import random
from collections.abc import Callable
from typing import Final

from tests.faults.runner import PATIENCE_SECONDS, Runner
from tests.faults.testbed import FaultTestbed, frozen, sleep
from tests.support.waiting import wait_until

#: Seconds that a fault lasts at most.
LONGEST_SECONDS: Final = 2.0


class FaultInjector:
    """Causes random faults in a testbed. Each public method is one fault, from its beginning to its end."""

    def __init__(self, testbed: FaultTestbed, chance: random.Random) -> None:
        self._testbed = testbed
        self._chance = chance
        self._faults: list[Callable[[], str]] = [
            self.cut,
            self.refuse,
            self.stall,
            self.throttle,
            self.lose_replies,
            self.lose_requests,
            self.freeze_runner,
            self.freeze_store,
            self.kill_store,
            self.cut_power,
            self.no_memory,
            self.no_lease,
            self.cut_service,
            self.kill_worker,
        ]

    def inject(self) -> str:
        """Injects one fault, chosen at random, and returns its name."""
        return self._chance.choice(self._faults)()

    def cut(self) -> str:
        """A runner's connections break."""
        self._runner().proxy.cut()
        return "cut"

    def refuse(self) -> str:
        """The proxy refuses a runner's connections to the store."""
        proxy = self._runner().proxy
        proxy.refuse()
        proxy.cut()
        self._wait()
        proxy.heal()
        return "refuse"

    def stall(self) -> str:
        """The proxy holds a runner's bytes back, in one direction or both. Then it forwards them, or cuts the link."""
        proxy = self._runner().proxy
        proxy.stall(*self._chance.choice([(), ("up",), ("down",)]))
        self._wait()
        if self._chance.random() < 0.5:
            proxy.cut()
        proxy.heal()
        return "stall"

    def throttle(self) -> str:
        """A runner's connection is slow."""
        proxy = self._runner().proxy
        proxy.throttle(self._chance.choice([500, 5_000, 50_000]))
        self._wait()
        proxy.heal()
        return "throttle"

    def lose_replies(self) -> str:
        """The store executes a runner's commands, but the replies are lost in whole or in part."""
        proxy = self._runner().proxy
        proxy.drop_reply(self._chance.choice([0, 1, 7]), times=self._chance.randint(1, 4))
        self._wait()
        proxy.heal()
        return "lose replies"

    def lose_requests(self) -> str:
        """A runner's commands reach the store only in part."""
        proxy = self._runner().proxy
        proxy.drop_request(self._chance.choice([0, 1, 100, 2_000]), times=self._chance.randint(1, 4))
        self._wait()
        proxy.heal()
        return "lose requests"

    def freeze_runner(self) -> str:
        """SIGSTOP freezes a runner."""
        with frozen(self._runner().process):
            self._wait()
        return "freeze a runner"

    def freeze_store(self) -> str:
        """SIGSTOP freezes the store."""
        with frozen(self._testbed.redis):
            self._wait()
        return "freeze the store"

    def kill_store(self) -> str:
        """The store is killed and restarted."""
        self._testbed.redis.kill()
        if self._chance.random() < 0.5:
            self._wait()
        self._testbed.redis.start()
        return "kill the store"

    def cut_power(self) -> str:
        """The store is killed and restarted without the writes that were not yet safe on its disk."""
        safe = self._testbed.freeze_disk()
        self._wait()
        lost = self._testbed.cut_power(safe)
        self._testbed.redis.start()
        return f"cut the power, {lost} bytes"

    def no_memory(self) -> str:
        """The store refuses writes because its memory is full."""
        self._testbed.redis.ask("CONFIG", "SET", "maxmemory", "1")
        self._wait()
        self._testbed.redis.ask("CONFIG", "SET", "maxmemory", "0")
        return "no memory"

    def no_lease(self) -> str:
        """The lease of a runner is deleted while it publishes. Otherwise its job might be declared LOST."""
        job = self._runner().job
        key, before = self._testbed.key("lease", job), self._testbed.last_id(job)
        wait_until(lambda: self._testbed.last_id(job) > before, PATIENCE_SECONDS, f"the runner of {job} publishes")
        self._testbed.redis.ask("DEL", key)
        wait_until(lambda: self._testbed.redis.ask("EXISTS", key), PATIENCE_SECONDS, f"the lease of {job} is back")
        return "no lease"

    def cut_service(self) -> str:
        """The proxy refuses the service's connections to the store."""
        link = self._testbed.link
        link.refuse()
        link.cut()
        self._wait()
        link.heal()
        return "cut the service"

    def kill_worker(self) -> str:
        """A worker of the service is killed, and its viewers must reconnect."""
        with contextlib.suppress(ProcessLookupError, IndexError):
            self._testbed.kill_worker(self._chance.choice(self._testbed.service.worker_pids()))
        return "kill a worker"

    def _runner(self) -> Runner:
        return self._chance.choice(self._testbed.runners)

    def _wait(self) -> None:
        sleep(self._chance.uniform(0.1, LONGEST_SECONDS))
