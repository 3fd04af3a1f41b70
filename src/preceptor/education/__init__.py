"""Human learners and what is said to them: annotation, tests, feedback, and the logs of learning."""
