"""One file a command, thin: arguments in, a room called, an answer printed."""
