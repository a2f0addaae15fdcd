"""The errors that a user can mend: programs print them in one line, without a traceback."""


class UserError(Exception):
  """Something outside the code is wrong; the message names it and says what to do."""


class ConfigError(UserError):
  """A config, or a value in it, that cannot be used; the message names the key."""
