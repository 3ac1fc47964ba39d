import Foundation
import TestSupport
import Testing

/// A mode in C that keeps guests in files while no VMM runs.
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct KeepingModeTests {
    private let directory: TemporaryDirectory
    private let module: String

    init() throws {
        directory = try TemporaryDirectory()
        let source = """
            #include <fcntl.h>
            #include <stdio.h>
            #include <stdlib.h>
            #include <string.h>
            #include <sys/stat.h>
            #include <sys/syscall.h>
            #include <unistd.h>
            #define MEMORY 2
            #ifndef SEEK_DATA
            #define SEEK_DATA 3
            #endif
            static const char *path(struct baton_host *host, int number) {
                static char text[512];
                const char *name = baton_vm_name(host);
                snprintf(text, sizeof text, "\(directory.path)/%s-%d", name ? name : "", number);
                return text;
            }
            static int copy(int from, int to) {
                off_t size = lseek(from, 0, SEEK_END), at = 0;
                if (size < 0 || ftruncate(to, size)) return -1;
                while (at < size && (at = lseek(from, at, SEEK_DATA)) >= 0) {
                    static char buffer[1 << 16];
                    ssize_t count = pread(from, buffer, sizeof buffer, at);
                    if (count <= 0 || pwrite(to, buffer, (size_t)count, at) != count) return -1;
                    at += count;
                }
                return 0;
            }
            static int32_t put(struct baton_host *host, int number, int fd) {
                int file = open(path(host, number), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
                if (file < 0 || copy(fd, file)) return baton_fail(host, "the shelf is full");
                close(file);
                return 0;
            }
            static uint32_t promises(struct baton_host *host) {
                (void)host;
                return BATON_MODE_SURVIVES_HOST_UPDATE | BATON_MODE_MEMFD_RAM;
            }
            static int32_t keep(struct baton_host *host, int32_t state, int32_t checkpoint) {
                int number = MEMORY;
                if (!baton_vm_name(host)) return baton_fail(host, "the shelf needs a name");
                for (uint32_t i = 0; i < baton_ram_count(host); i++) {
                    struct baton_ram_block block;
                    if (baton_ram_block(host, i, &block)) return 1;
                    if (block.shared && !block.persistent && put(host, number++, block.fd)) return 1;
                }
                return put(host, 1, checkpoint) || put(host, 0, state);
            }
            static int32_t finish(struct baton_host *host) {
                for (int number = 0; !unlink(path(host, number)); number++) {}
                return 0;
            }
            static void let_go(struct baton_host *host) { finish(host); }
            static int32_t find(struct baton_host *host) {
                int32_t fds[64];
                uint32_t count = 0;
                while (count < 64) {
                    int file = open(path(host, (int)count), O_RDONLY | O_CLOEXEC);
                    if (file < 0) break;
                    fds[count] = (int32_t)syscall(SYS_memfd_create, "shelf", 1U);
                    if (copy(file, fds[count++])) return baton_fail(host, "the shelf cannot be read");
                    close(file);
                }
                if (count < MEMORY) return 0;
                return baton_found(host, fds[0], fds[1], fds + MEMORY, count - MEMORY, "It stays on the shelf.");
            }
            static const struct baton_method methods[] = {
                BATON_METHOD("promises", "I(h)", promises), BATON_METHOD("keep", "i(hii)", keep),
                BATON_METHOD("let-go", "v(h)", let_go), BATON_METHOD("find", "i(h)", find),
                BATON_METHOD("finish", "i(h)", finish),
            };
            """
        module = try CModule.build(kind: "mode", name: "shelf", source, in: directory)
    }

    private func start(_ more: [String] = [], memory: String = "16M") throws -> LiveUpdateTests.VM {
        let socket = directory.file("qmp")
        unlink(socket)
        return LiveUpdateTests.VM(
            process: try ChildProcess(
                [
                    Products.baton, "-name", "kept", "-machine", "virt,memory-backend=ram", "-m", memory, "-object",
                    "memory-backend-memfd,id=ram,size=\(memory),share=on", "-bios", "none", "-kernel",
                    try CountingGuest.image(), "-nodefaults", "-nographic", "-serial",
                    "file:\(directory.file("serial"))",
                    "-qmp", "unix:\(socket),server=on,wait=off", "-sandbox", "paths=\(directory.path)", "-module",
                    module, "-cpr-enable", "shelf",
                ] + more), socket: socket)
    }

    private var shelf: [String] {
        get throws {
            try FileManager.default.contentsOfDirectory(atPath: directory.path).filter { $0.hasPrefix("kept-") }
        }
    }

    @Test func aGuestIsKeptAndFound() throws {
        let file = directory.file("checkpoint"), arguments = ["filename": file, "mode": "shelf"]
        let vm = try start()
        try vm.awaitProgress()
        try vm.qmp.execute("cpr-save", arguments)
        #expect(try shelf.count == 6)
        try vm.qmp.execute("cont")
        try vm.awaitProgress()
        #expect(try shelf.isEmpty)
        try vm.qmp.execute("cpr-save", arguments)
        let stopped = try vm.count()
        try vm.end()

        let other = try start(["-S"], memory: "32M")
        #expect(try other.process.waitForExit() == .status(1))
        #expect(
            other.process.errors.contains("33554432 on the command line")
                && other.process.errors.contains("It stays on the shelf."), "\(other.process.errors)")
        let next = try start()
        try next.awaitProgress()
        #expect(try next.count() > stopped)
        try next.expectRightSum()
        #expect(try shelf.isEmpty)
        try next.end()

        let late = try start(["-S"])
        #expect(
            refusal { try late.qmp.execute("cpr-load", arguments) }.contains("none of this VM was found"))
        #expect(refusal { try late.qmp.execute("cont") } == "the VM waits for cpr-load")
        try late.end()
    }

    @Test func aModeThatPromisesItAndLacksItIsRefused() throws {
        let source = """
            static uint32_t promises(struct baton_host *host) {
                (void)host;
                return BATON_MODE_SURVIVES_HOST_UPDATE;
            }
            static const struct baton_method methods[] = {BATON_METHOD("promises", "I(h)", promises)};
            """
        let lacking = try CModule.build(kind: "mode", name: "lacking", source, in: directory)
        let process = try ChildProcess([Products.baton, "-module", lacking])
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains("lacks 'keep' or 'find'"), "\(process.errors)")
    }
}
