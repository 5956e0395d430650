"""What every part leans on: checks of arguments and values, layout, seeds, how a command starts and ends."""
