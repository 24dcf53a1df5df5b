"""Registration by an agent: a network looks at both images and chooses the next step of the moving one."""
