"""What the tests share: a server and workers in processes of their own, and looks at the kernel's accounting."""
