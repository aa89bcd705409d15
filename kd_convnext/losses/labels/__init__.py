"""Terms that compare the student's logits with labels."""
