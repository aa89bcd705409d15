"""Terms that compare feature maps or embeddings of student and teacher."""
