"""A server with the users of ``deploy/redis-users.acl``."""

from pathlib import Path
from typing import Any, Final

import redis

from tests.support.servers import RedisServer

USERS: Final = Path(__file__).parents[2] / "deploy" / "redis-users.acl"


class GuardedServer(RedisServer):
    """A server with the users from that file. Its own connections use the administrator."""

    def __init__(self, directory: Path, binary: str | None = None, *options: str) -> None:
        super().__init__(directory, binary, *self.users(), *options)

    def users(self) -> tuple[str, ...]:
        """Server options that load the file."""
        return ("--aclfile", str(USERS))

    def url_of(self, user: str) -> str:
        """The URL with a user's credentials."""
        return f"unix://{user}:{self.password_of(user)}@{self.socket}"

    def password_of(self, user: str) -> str:
        """A user's password in the shipped file, which operators replace."""
        return f"PASSWORD-OF-{user.upper()}"

    def ask(self, *command: Any) -> Any:
        with redis.Redis.from_url(self.url_of("admin"), protocol=2, driver_info=None) as client:
            client.response_callbacks.clear()
            return client.execute_command(*command)
