"""The errors that a user can cause, and fix.

Each message names the file, row or key, what was found, what was expected and what to do.

AgentPSError
├── ConfigError        an option, or the file that holds it
├── TaskError          the policy file: questions, classes, rules
├── ManifestError      the posts file as a whole, or too many rejected rows
├── ImageError         one image: unreadable, too large, outside its root
├── AnnotationError    the annotator's endpoint
├── DataError          the validated data break a critical rule
├── PromptError        a post whose sequence cannot be built
├── CheckpointError    a checkpoint that does not fit what it is loaded for
├── RegistryError      the model registry
└── ScheduleError      the machine's scheduler
"""


class AgentPSError(Exception):
    """Base of every error whose message is meant for the person who runs the pipeline."""


class ConfigError(AgentPSError):
    """An option is unknown, missing or out of its range."""


class TaskError(AgentPSError):
    """A task file breaks the rules in `model.task`."""


class ManifestError(AgentPSError):
    """A manifest cannot be read, or too many of its posts were rejected."""


class ImageError(AgentPSError):
    """An image cannot be used; the message is the reason shown in the rejects table."""


class AnnotationError(AgentPSError):
    """The annotator cannot be reached, or refuses every request (authentication, quota)."""


class DataError(AgentPSError):
    """The data broke a critical expectation."""


class PromptError(AgentPSError):
    """A sequence would have its answer positions in the wrong place."""


class CheckpointError(AgentPSError):
    """A checkpoint lacks a part or was made for another backbone or task."""


class RegistryError(AgentPSError):
    """The registry refuses, or holds something that this project did not write."""


class ScheduleError(AgentPSError):
    """The machine has no scheduler that can be used, refuses a schedule, or there is none."""
