"""The method: policies, routing, walks, rollouts, objectives, and the three trainings that they make up."""
