"""The blend: run weights, the methods that find them, their nested choice and the calibration of the result."""
