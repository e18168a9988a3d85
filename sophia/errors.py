"""The errors that Sophia raises, as one tree. The type decides what the caller does.

    SophiaError
    ├── ConfigurationError      a person must change something first; exit code 2
    │   ├── SettingsError       environment variables
    │   └── SourceError         the source database: table, key, publication, permissions
    ├── TemporaryError          try again: a server is away
    │   ├── UnreachableError    it was not reached at all, so nothing of the call is under way there
    │   ├── BusyError           someone else is at this work; leave it to them
    │   └── FencedError         someone else took over; this process must stop writing
    └── DocumentError           this one document cannot be taken; park it and go on

`sophia.catalog.CatalogError` is a ConfigurationError too.
"""


class SophiaError(Exception):
    """Anything that Sophia reports. The message says what to do."""

    exit_code = 1


class ConfigurationError(SophiaError):
    """A person must change something first."""

    exit_code = 2


class SettingsError(ConfigurationError):
    """One or more environment variables are missing or malformed."""


class SourceError(ConfigurationError):
    """The source database cannot be captured as it is."""


class TemporaryError(SophiaError):
    """The same call may succeed later."""

    exit_code = 3


class UnreachableError(TemporaryError):
    """The server was not reached, or refused at the door: nothing of this call has or will have any effect there."""


class BusyError(TemporaryError):
    """Another process is doing this very work."""


class FencedError(TemporaryError):
    """Another process holds the lease with a newer epoch; nothing of this batch was written."""


class DocumentError(SophiaError):
    """One document cannot be processed. Its batch goes on without it."""
