# The systemd units that run nbdkit for images, the user that they run as, and the script that they
# start.
set(units ${CMAKE_SOURCE_DIR}/packaging/systemd)
install(FILES ${units}/qimg@.socket DESTINATION lib/systemd/system)
install(FILES ${units}/qimg.sysusers DESTINATION lib/sysusers.d RENAME qimg.conf)
install(PROGRAMS ${units}/serve-instance DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/qimg)

# As for the plugin, the prefix is known only when the project is installed.  The unit has the
# absolute path of the script.
install(CODE "
    set(LIBEXECDIR \"${CMAKE_INSTALL_LIBEXECDIR}\")
    cmake_path(ABSOLUTE_PATH LIBEXECDIR BASE_DIRECTORY \"\${CMAKE_INSTALL_PREFIX}\")
    configure_file(\"${units}/qimg@.service.in\" \"${CMAKE_BINARY_DIR}/qimg@.service\" @ONLY)
    file(INSTALL DESTINATION \"\${CMAKE_INSTALL_PREFIX}/lib/systemd/system\" TYPE FILE
        FILES \"${CMAKE_BINARY_DIR}/qimg@.service\")")
