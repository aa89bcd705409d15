"""Files, machine, configurations, console and arrays: what every room uses, without a word of the domain."""
