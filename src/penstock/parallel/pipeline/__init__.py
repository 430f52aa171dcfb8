"""Pipeline parallelism: schedules as data, checked, timed, synthesised, drawn, and run."""
