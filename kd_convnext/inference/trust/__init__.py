"""Temperature, prediction sets and the gate against foreign photographs."""
