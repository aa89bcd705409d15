"""Enlarges crops: Real-ESRGAN networks, bicubic interpolation, or nothing."""
