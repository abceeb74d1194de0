"""Parts for flow-opd: the reward `sharpness` and the objective `huber`."""
