"""What is minimised: terms that judge the student's velocity, and their weighted sum."""
