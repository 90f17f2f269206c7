"""What the command line does, by the kind of work: each function is a command, mostly its options."""
