"""What goes wrong, by class: the command line prints these in one line, and everything else with its traceback."""


class InputError(ValueError):
    """A value that the user gave cannot be used."""


class InputTypeError(InputError, TypeError):
    """Something that the user gave is of the wrong type."""


class StateError(RuntimeError):
    """Something cannot be done now: another process writes, an episode is running, training diverged."""


class HubError(ConnectionError):
    """The Hub cannot be reached or does not serve, after a few tries."""


class ClusterError(ConnectionError):
    """Machines of a cluster do not answer, for longer than they may."""
