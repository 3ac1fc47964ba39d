import TestSupport

/// C source of `act(step)`, for modules that hang in the step which the file `orders` names.
func hangingStep(ordersIn directory: TemporaryDirectory) -> String {
    """
    #include <stdio.h>
    #include <string.h>
    #include <unistd.h>
    static int32_t act(const char *step) {
        char line[64] = "";
        FILE *file = fopen("\(directory.file("orders"))", "re");
        if (file) { if (!fgets(line, sizeof line, file)) line[0] = 0; fclose(file); }
        if (strcmp(line, step) == 0) for (;;) pause();
        return 0;
    }
    """
}
