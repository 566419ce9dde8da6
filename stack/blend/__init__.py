"""The blend: methods that weight the runs, the nested choice of a method, and the calibration of the blend's score."""
