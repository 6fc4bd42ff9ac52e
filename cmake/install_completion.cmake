# Shell completion, which asks the installed command for its words.
install(FILES ${CMAKE_SOURCE_DIR}/packaging/completion/qimg.bash
    DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME qimg)
install(FILES ${CMAKE_SOURCE_DIR}/packaging/completion/_qimg
    DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
