import Foundation
import TestSupport

/// A program that stands before a VMM's in the command of an update, as `sudo`
/// and its like do. Its words, in any number, are what it does before it
/// executes the rest:
///
/// - `lose`: closes descriptors from 3 up, and clears the environment;
/// - `fork`: goes on in an orphan with a session of its own, and ends;
/// - `helper FILE`: starts such an orphan, which sleeps, and writes its PID;
/// - `list FILE`: writes a line for each descriptor (see `Descriptor`);
/// - `twice`: makes another state like the one that the VMM handed over;
/// - `--`: that was all.
struct UpdateCommand {
    private let path: String

    init(in directory: TemporaryDirectory) throws {
        guard let compiler = Products.find("clang") else { throw TestError("there is no clang") }
        path = directory.file("command")
        let input = try directory.write("command.c", Self.source)
        _ = try ChildProcess.run([compiler, "-std=gnu11", "-Wall", "-Werror", "-o", path, input])
    }

    func callAsFunction(_ words: [String], _ command: [String]) -> [String] { [path] + words + ["--"] + command }

    /// A descriptor as `list` shows it.
    struct Descriptor {
        /// As in /proc.
        var link: String
        /// Can be written to.
        var isWritable: Bool
        /// Tells one file from another, eventfds from each other too.
        var identity: String

        static func list(_ file: String) throws -> [Descriptor] {
            try String(contentsOfFile: file, encoding: .utf8).split(separator: "\n").map { line in
                let words = line.split(separator: " ", maxSplits: 2)
                guard words.count == 3 else { throw TestError("'\(line)' is no descriptor") }
                return Descriptor(link: String(words[2]), isWritable: words[0] != "0", identity: String(words[1]))
            }
        }
    }

    private static let source = #"""
        #define _GNU_SOURCE
        #include <dirent.h>
        #include <fcntl.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/mman.h>
        #include <sys/prctl.h>
        #include <sys/stat.h>
        #include <unistd.h>

        static void check(int good) {
            if (!good) { perror("command"); exit(99); }
        }

        /* Returns in the orphan when its parent has gone. */
        static pid_t orphan(void) {
            int ends[2];
            check(pipe2(ends, O_CLOEXEC) == 0);
            pid_t child = fork();
            check(child >= 0);
            if (child > 0) {
                char byte;
                close(ends[1]);
                check(read(ends[0], &byte, 1) == 0);
                close(ends[0]);
                return child;
            }
            setsid();
            pid_t grandchild = fork();
            check(grandchild >= 0);
            if (grandchild > 0) _exit(0);
            setsid();
            close(ends[0]);
            close(ends[1]);
            return 0;
        }

        static void helper(const char *file) {
            if (orphan()) {
                /* Not before its PID is known. */
                while (access(file, F_OK) != 0) usleep(1000);
                return;
            }
            char name[4096];
            snprintf(name, sizeof name, "%s.new", file);
            FILE *out = fopen(name, "w");
            check(out != NULL);
            fprintf(out, "%d\n", getpid());
            fclose(out);
            check(rename(name, file) == 0);
            while (1) pause();
        }

        static void list(const char *file) {
            FILE *out = fopen(file, "we");
            DIR *directory = opendir("/proc/self/fd");
            check(out && directory);
            for (struct dirent *entry; (entry = readdir(directory));) {
                char path[300], link[4096] = "", line[256], identity[128];
                int fd = atoi(entry->d_name);
                struct stat status;
                if (fd < 3 || fd == dirfd(directory) || fd == fileno(out)) continue;
                snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
                check(readlink(path, link, sizeof link - 1) > 0 && fstat(fd, &status) == 0);
                snprintf(identity, sizeof identity, "%llx:%llu", (unsigned long long)status.st_dev,
                         (unsigned long long)status.st_ino);
                snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
                FILE *info = fopen(path, "re");
                while (info && fgets(line, sizeof line, info))
                    if (!strncmp(line, "eventfd-id:", 11)) sscanf(line, "eventfd-id: %100s", identity);
                if (info) fclose(info);
                fprintf(out, "%d %s %s\n", fcntl(fd, F_GETFL) & O_ACCMODE, identity, link);
            }
            fclose(out);
        }

        static void twice(void) {
            int old = atoi(getenv("BATON_CPR_STATE")), new = memfd_create("cpr-state", MFD_ALLOW_SEALING);
            struct stat status;
            check(new >= 0 && fstat(old, &status) == 0);
            char *bytes = malloc((size_t)status.st_size);
            check(pread(old, bytes, (size_t)status.st_size, 0) == status.st_size);
            check(write(new, bytes, (size_t)status.st_size) == status.st_size);
            check(fcntl(new, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
            unsetenv("BATON_CPR_STATE");
        }

        int main(int argc, char **argv) {
            char **word = argv + 1;
            for (; *word && strcmp(*word, "--"); word++) {
                if (!strcmp(*word, "lose")) { check(clearenv() == 0); closefrom(3); }
                else if (!strcmp(*word, "fork")) { if (orphan()) _exit(0); }
                else if (!strcmp(*word, "helper")) helper(*++word);
                else if (!strcmp(*word, "list")) list(*++word);
                else if (!strcmp(*word, "twice")) twice();
                else return 98;
            }
            if (*word) execvp(word[1], word + 1);
            perror("command");
            return 97;
        }
        """#
}
