"""What every other folder may use, and which uses none of them: errors, files, checkpoints, messages, devices.

To add something here: it must import nothing else of this package.
"""
