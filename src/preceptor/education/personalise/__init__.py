"""Tasks rewritten to students' interests: drafts, checks, a teacher's review, and what it costs and gains."""
