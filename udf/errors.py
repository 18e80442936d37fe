"""The errors of the package.

ClipError
├── SettingsError       the settings file is missing, malformed or holds a wrong value
├── BundleError         a model bundle is missing, damaged or of another format
├── ExportError         a model cannot be made into a bundle
├── ProtocolError       bytes that are no Native block or no frame
├── PictureError        one picture cannot be read; the row's error, never the service's
├── ServiceError        the encoder service cannot be started or reached
├── DeviceError         a GPU that was asked for cannot be used, or has failed
├── InstallError        the functions cannot be placed
└── LoadError           a shard of a data set cannot be loaded

A message says what is wrong, where, and what to do about it: it is what an analyst reads in the
query's exception.
"""


class ClipError(Exception):
    """Root of every error that this package raises on purpose."""


class SettingsError(ClipError):
    """The settings file is missing, malformed or holds a wrong value."""


class BundleError(ClipError):
    """A model bundle is missing, damaged or of another format."""


class ExportError(ClipError):
    """A model cannot be made into a bundle."""


class ProtocolError(ClipError):
    """Bytes that are no Native block or no frame, or a column type that no function takes."""


class PictureError(ClipError):
    """One picture cannot be read."""


class ServiceError(ClipError):
    """The encoder service cannot be started or reached."""


class DeviceError(ClipError):
    """A GPU that was asked for cannot be used, or has failed."""


class InstallError(ClipError):
    """The functions cannot be placed."""


class LoadError(ClipError):
    """A shard of a data set cannot be loaded."""
