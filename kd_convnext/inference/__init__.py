"""From a checkpoint to answers for new photographs: predict, calibrate, abstain."""
